//! YAML as Go's yaml.v3 writes it with an indent of two, byte for byte.
//!
//! Only what a Kitfile needs: objects, lists, text, numbers, booleans and null, and lists of text in one
//! line. Lines are never folded (yaml.v3 sets no width). The columns and flags are those of the original,
//! libyaml's emitter, because its oddities come from them: what a text begins or ends with decides where
//! lines break, and some texts do not survive being read back.

use crate::kit::plain;

/// What to write.
#[derive(Clone, Debug)]
pub enum Value<'a> {
    /// Text, quoted as it needs to be.
    Text(&'a str),
    /// A number, boolean or null, already in YAML.
    Word(String),
    /// Texts in one line.
    Line(Vec<&'a str>),
    /// A list.
    List(Vec<Value<'a>>),
    /// An object, in this order.
    Object(Vec<(&'a str, Value<'a>)>),
    /// A value that writes itself, so that a large one is not held twice.
    Nested(&'a dyn Nested),
}

/// A value that is turned into a [`Value`] of one level when its turn comes.
pub trait Nested: std::fmt::Debug {
    /// The value, with its children as [`Value::Nested`] again.
    fn value(&self) -> Value<'_>;
}

/// Writes an object as a document of at most `limit` bytes; `None` if it is longer.
pub fn write(document: &Value<'_>, limit: usize) -> Option<String> {
    let mut writer = Writer {
        out: String::new(),
        limit,
        full: false,
        indent: None,
        column: 0,
        after_space: true,
        in_indent: true,
        place: Place::Block,
    };
    writer.value(document);
    writer.start_line();
    (!writer.full).then_some(writer.out)
}

/// Where a scalar stands, which decides what may stay plain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// A value of its own.
    Block,
    /// In a list in one line.
    Flow,
    /// A key with its value behind it.
    SimpleKey,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    Plain,
    Single,
    Double,
    Literal,
}

struct Writer {
    out: String,
    limit: usize,
    /// Set once the document is too long; nothing is written from then on.
    full: bool,
    /// `None` around the document.
    indent: Option<usize>,
    /// Characters since the line began.
    column: usize,
    /// Whether no space is needed before the next token.
    after_space: bool,
    /// Whether the line has had nothing but indentation, dashes and the like.
    in_indent: bool,
    place: Place,
}

impl Writer {
    fn value(&mut self, value: &Value<'_>) {
        match value {
            Value::Text(text) => self.text(text),
            Value::Word(word) => self.scalar(word, Style::Plain),
            Value::Line(texts) => self.line(texts),
            Value::List(items) if items.is_empty() => self.empty("["),
            Value::List(items) => self.indented(|writer| {
                for item in items {
                    writer.start_line();
                    writer.dash("-");
                    writer.value(item);
                }
            }),
            Value::Object(members) if members.is_empty() => self.empty("{"),
            Value::Object(members) => self.indented(|writer| {
                for (key, value) in members {
                    writer.member(key, value);
                }
            }),
            Value::Nested(_) if self.full => {}
            Value::Nested(nested) => self.value(&nested.value()),
        }
    }

    fn member(&mut self, key: &str, value: &Value<'_>) {
        self.start_line();
        // A longer key, or one of several lines, is announced by a question mark.
        if key.len() <= 128 && !Analysis::of(key).multiline {
            self.place = Place::SimpleKey;
            self.text(key);
            self.place = Place::Block;
            self.close(":");
        } else {
            self.dash("?");
            self.text(key);
            self.start_line();
            self.dash(":");
        }
        self.value(value);
    }

    fn line(&mut self, texts: &[&str]) {
        self.open("[");
        self.after_space = true;
        let place = std::mem::replace(&mut self.place, Place::Flow);
        self.indented(|writer| {
            for (number, text) in texts.iter().enumerate() {
                if number > 0 {
                    writer.close(",");
                }
                if writer.column == 0 {
                    writer.start_line();
                }
                writer.text(text);
            }
        });
        self.place = place;
        if self.column == 0 {
            self.start_line();
        }
        self.close("]");
    }

    fn empty(&mut self, bracket: &str) {
        self.open(bracket);
        self.close(if bracket == "[" { "]" } else { "}" });
    }

    fn text(&mut self, text: &str) {
        let style = if text.contains('\n') {
            Style::Literal
        } else if plain::stays_text(text) {
            Style::Plain
        } else {
            Style::Double
        };
        self.scalar(text, style);
    }

    fn scalar(&mut self, text: &str, style: Style) {
        let style = Analysis::of(text).narrow(style, self.place);
        self.indented(|writer| match style {
            Style::Plain => writer.plain(text),
            Style::Single => writer.single_quoted(text),
            Style::Double => writer.double_quoted(text),
            Style::Literal => writer.literal(text),
        });
    }

    fn plain(&mut self, text: &str) {
        if !text.is_empty() && !self.after_space {
            self.put(' ');
        }
        text.chars().for_each(|c| self.put(c));
        self.after_space = self.after_space && text.is_empty();
        self.in_indent = false;
    }

    fn single_quoted(&mut self, text: &str) {
        self.open("'");
        // Only the separators of Unicode can break a line here: text with `\n` is never single-quoted.
        let mut broken = false;
        for c in text.chars() {
            if is_break(c) {
                self.put_break_as_is(c);
                broken = true;
                continue;
            }
            if c != ' ' {
                if broken {
                    self.start_line();
                }
                if c == '\'' {
                    self.put(c);
                }
                self.in_indent = false;
                broken = false;
            }
            self.put(c);
        }
        self.close("'");
        self.in_indent = false;
    }

    fn double_quoted(&mut self, text: &str) {
        self.open("\"");
        // yaml.v3 looks for a byte order mark at the beginning of the text whatever character it is at.
        let escape_all = text.starts_with('\u{feff}');
        for c in text.chars() {
            if escape_all || !is_printable(c) || is_break(c) || matches!(c, '"' | '\\') {
                self.escape(c);
            } else {
                self.put(c);
            }
        }
        self.close("\"");
        self.in_indent = false;
    }

    fn escape(&mut self, c: char) {
        let code = u32::from(c);
        let escaped = match c {
            '\0' => "\\0".to_owned(),
            '\u{7}' => "\\a".to_owned(),
            '\u{8}' => "\\b".to_owned(),
            '\t' => "\\t".to_owned(),
            '\n' => "\\n".to_owned(),
            '\u{b}' => "\\v".to_owned(),
            '\u{c}' => "\\f".to_owned(),
            '\r' => "\\r".to_owned(),
            '\u{1b}' => "\\e".to_owned(),
            '"' => "\\\"".to_owned(),
            '\\' => "\\\\".to_owned(),
            '\u{85}' => "\\N".to_owned(),
            '\u{a0}' => "\\_".to_owned(),
            '\u{2028}' => "\\L".to_owned(),
            '\u{2029}' => "\\P".to_owned(),
            _ if code <= 0xFF => format!("\\x{code:02X}"),
            _ if code <= 0xFFFF => format!("\\u{code:04X}"),
            _ => format!("\\U{code:08X}"),
        };
        escaped.chars().for_each(|c| self.put(c));
    }

    fn literal(&mut self, text: &str) {
        self.open("|");
        if text.starts_with(|c| c == ' ' || is_break(c)) {
            self.close("2");
        }
        let mut from_end = text.chars().rev();
        match (from_end.next().is_some_and(is_break), from_end.next().is_none_or(is_break)) {
            (false, _) => self.close("-"),
            (true, true) => self.close("+"),
            (true, false) => {}
        }
        self.after_space = true;
        let mut broken = true;
        for c in text.chars() {
            if is_break(c) {
                self.put_break_as_is(c);
            } else {
                if broken {
                    self.start_line();
                }
                self.put(c);
                self.in_indent = false;
            }
            broken = is_break(c);
        }
    }

    /// Writes with two more columns of indentation.
    fn indented(&mut self, write: impl FnOnce(&mut Self)) {
        let outer = self.indent;
        self.indent = Some(outer.map_or(0, |indent| indent + 2));
        write(self);
        self.indent = outer;
    }

    /// Goes to the indentation, on a new line unless this one has nothing beyond it.
    fn start_line(&mut self) {
        let indent = self.indent.unwrap_or(0);
        if !self.in_indent || self.column > indent || (self.column == indent && !self.after_space) {
            self.put_break();
        }
        while self.column < indent {
            self.put(' ');
        }
        self.after_space = true;
    }

    /// A token that begins something in the line.
    fn open(&mut self, token: &str) {
        if !self.after_space {
            self.put(' ');
        }
        self.close(token);
    }

    /// A token behind something.
    fn close(&mut self, token: &str) {
        token.chars().for_each(|c| self.put(c));
        self.after_space = false;
        self.in_indent = false;
    }

    /// A token after which the line counts as indentation still.
    fn dash(&mut self, token: &str) {
        let in_indent = self.in_indent;
        self.open(token);
        self.in_indent = in_indent;
    }

    fn put(&mut self, c: char) {
        self.push(c);
        self.column += 1;
    }

    fn put_break(&mut self) {
        self.push('\n');
        self.column = 0;
        self.in_indent = true;
    }

    fn put_break_as_is(&mut self, c: char) {
        self.push(c);
        self.column = 0;
        self.in_indent = true;
    }

    fn push(&mut self, c: char) {
        self.full |= self.out.len() >= self.limit;
        if !self.full {
            self.out.push(c);
        }
    }
}

/// What a text is like, as far as it matters to how it can be written.
#[derive(Clone, Copy, Debug)]
struct Analysis {
    empty: bool,
    multiline: bool,
    flow_plain: bool,
    block_plain: bool,
    single_quoted: bool,
    literal: bool,
}

impl Analysis {
    fn of(text: &str) -> Self {
        let indicators = Indicators::of(text);
        let (mut breaks, mut tabs, mut special) = (false, false, false);
        let (mut break_space, mut space_break) = (false, false);
        let mut previous = None;
        for c in text.chars() {
            tabs |= c == '\t';
            special |= c != '\t' && !is_printable(c);
            breaks |= is_break(c);
            break_space |= c == ' ' && previous.is_some_and(is_break);
            space_break |= is_break(c) && previous == Some(' ');
            previous = Some(c);
        }
        let blank = |c: char| c == ' ' || is_break(c);
        let plain = !(text.starts_with(blank)
            || text.ends_with(blank)
            || break_space
            || space_break
            || tabs
            || special
            || breaks);
        Self {
            empty: text.is_empty(),
            multiline: breaks,
            flow_plain: plain && !indicators.flow && !text.is_empty(),
            block_plain: plain && !indicators.block,
            single_quoted: !(break_space || space_break || tabs || special),
            literal: !(text.is_empty() || text.ends_with(' ') || space_break || special),
        }
    }

    /// The style that is used where another was wanted.
    fn narrow(self, wanted: Style, place: Place) -> Style {
        let mut style = wanted;
        if place == Place::SimpleKey && self.multiline {
            style = Style::Double;
        }
        if style == Style::Plain {
            let plain = if place == Place::Flow { self.flow_plain } else { self.block_plain };
            if !plain || (self.empty && place != Place::Block) {
                style = Style::Single;
            }
        }
        match style {
            Style::Single if !self.single_quoted => Style::Double,
            Style::Literal if !self.literal || place != Place::Block => Style::Double,
            _ => style,
        }
    }
}

/// Whether a text has what would mean something else in a line, or anywhere.
#[derive(Clone, Copy, Debug, Default)]
struct Indicators {
    flow: bool,
    block: bool,
}

impl Indicators {
    fn of(text: &str) -> Self {
        let document = text.starts_with("---") || text.starts_with("...");
        let mut found = Self { flow: document, block: document };
        let mut after_blank = true;
        let mut chars = text.chars().peekable();
        let mut first = true;
        while let Some(c) = chars.next() {
            let before_blank = chars.peek().is_none_or(|next| matches!(next, ' ' | '\t'));
            let (flow, block) = match c {
                '#' | ',' | '[' | ']' | '{' | '}' | '&' | '*' | '!' | '|' | '>' | '\'' | '"' | '%' | '@' | '`'
                    if first =>
                {
                    (true, true)
                }
                '-' if first => (before_blank, before_blank),
                '?' if first => (true, before_blank),
                ':' => (true, before_blank),
                ',' | '?' | '[' | ']' | '{' | '}' => (true, false),
                '#' if after_blank => (true, true),
                _ => (false, false),
            };
            found.flow |= flow;
            found.block |= block;
            after_blank = matches!(c, ' ' | '\t' | '\0') || is_break(c);
            first = false;
        }
        found
    }
}

fn is_break(c: char) -> bool {
    matches!(c, '\r' | '\n' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// What yaml.v3 prints as it is. Characters beyond the first plane are not among it.
fn is_printable(c: char) -> bool {
    matches!(c, '\n' | ' '..='~' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fefe}' | '\u{ff00}'..='\u{fffd}')
}
