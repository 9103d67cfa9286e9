//! `kitfs policy`: whether a policy is one, what the policies say of a kit and why, whether cases hold.

use std::io;
use std::io::Write;
use std::path::Path;

use crate::cli::documents::Explanation;
use crate::cli::documents::PolicyCheck;
use crate::cli::documents::PolicyTest;
use crate::cli::documents::TestedCase;
use crate::cli::failure::Error;
use crate::cli::kits::Kits;
use crate::cli::print;
use crate::cli::text;
use crate::config::Output;
use crate::fs::FsError;
use crate::policy::Case;
use crate::policy::Condition;
use crate::policy::Decision;
use crate::policy::Found;
use crate::policy::Policies;
use crate::policy::Trial;
use crate::policy::Verdict;
use crate::reference::Reference;
use crate::resolve::Kit;
use crate::resolve::Signatures;

/// Reads a policy and everything that it names.
pub fn check(file: &Path, output: Output) -> Result<(), Error> {
    let checked = Policies::of_file(file);
    let document = PolicyCheck {
        ok: checked.is_ok(),
        error: checked.as_ref().err().map(|error| text::chain(error)),
        rules: checked.as_ref().map(Policies::rules).unwrap_or_default(),
    };
    match output {
        Output::Json => print::json(&document)?,
        Output::Text if document.ok => print::text(|out| writeln!(out, "ok, {} rules", document.rules))?,
        Output::Text => {}
    }
    checked?;
    Ok(())
}

/// Shows what the policies say of a kit. That they refuse it is an answer, and no failure.
pub async fn explain(kits: &Kits, reference: &str) -> Result<(), Error> {
    let reference: Reference = reference.parse()?;
    let (decisions, judged) = match kits.look_up(&reference, kits.policies(), Signatures::Needed).await {
        Ok(kit) => {
            let decisions = kit.decisions.clone();
            let is_open = decisions.iter().any(|decision| !decision.models().is_empty());
            (decisions, if is_open { judge(kits, kit).await? } else { Judged::default() })
        }
        Err(unresolved) if unresolved.decisions.iter().any(|decision| decision.verdict() == Verdict::Deny) => {
            (unresolved.decisions, Judged::default())
        }
        Err(unresolved) => return Err(unresolved.error.into()),
    };
    let rules: Vec<_> = decisions.iter().flat_map(Decision::rules).cloned().collect();
    let verdicts = decisions.iter().map(Decision::verdict).chain(judged.verdict);
    let document = Explanation {
        decision: verdicts.max().unwrap_or(Verdict::None),
        rule: (!rules.is_empty()).then(|| rules.join("; ")),
        conditions: decisions.iter().flat_map(Decision::conditions).cloned().chain(judged.conditions).collect(),
    };
    match kits.config().output {
        Output::Json => print::json(&document),
        Output::Text => print::text(|out| write(out, &document)),
    }
}

/// What the policies say of the files.
#[derive(Default)]
struct Judged {
    verdict: Option<Verdict>,
    conditions: Vec<Condition>,
}

/// Reads the files that a policy demands to be signed.
async fn judge(kits: &Kits, kit: Kit) -> Result<Judged, Error> {
    match kits.open_files(kit).await {
        Ok(files) => Ok(Judged {
            verdict: files.judgements().iter().map(|judgement| judgement.verdict).max(),
            conditions: files.judgements().iter().map(|judgement| judgement.condition.clone()).collect(),
        }),
        Err(FsError::Refused { judgements, .. }) => Ok(Judged {
            verdict: Some(Verdict::Deny),
            conditions: judgements.into_iter().map(|judgement| judgement.condition).collect(),
        }),
        Err(error) => Err(error.into()),
    }
}

fn write(out: &mut dyn Write, document: &Explanation) -> io::Result<()> {
    writeln!(out, "{}", document.decision.name())?;
    if let Some(rule) = &document.rule {
        writeln!(out, "by {}", text::line(rule))?;
    }
    document.conditions.iter().try_for_each(|condition| {
        let word = if condition.ok { "ok" } else { "--" };
        writeln!(out, "{word:<3} {}", text::line(&condition.what))?;
        writeln!(out, "    {}", text::line(&condition.why))
    })
}

/// Runs the cases in a file.
pub async fn test(kits: &Kits, file: &Path) -> Result<(), Error> {
    let trial = Trial::read(file)?;
    let mut cases = Vec::new();
    for case in &trial.cases {
        let decision = decide(kits, &trial.policies, case).await?;
        let checked = case.check(&decision);
        cases.push(TestedCase {
            name: case.name.clone(),
            ok: checked.is_ok(),
            error: checked.err(),
            decision: decision.verdict(),
            reasons: decision.reasons().to_vec(),
        });
    }
    let failed = cases.iter().filter(|case| !case.ok).count();
    let document = PolicyTest { ok: failed == 0, cases };
    match kits.config().output {
        Output::Json => print::json(&document)?,
        Output::Text => print::text(|out| write_cases(out, &document))?,
    }
    if failed == 0 { Ok(()) } else { Err(Error::Trial { failed, cases: document.cases.len() }) }
}

async fn decide(kits: &Kits, policies: &Policies, case: &Case) -> Result<Decision, Error> {
    let Some(layout) = &case.layout else { return Ok(case.decide(policies)) };
    let kit = kits.look_up(layout, &Policies::none(), Signatures::Needed).await;
    let kit = kit.map_err(|unresolved| unresolved.error)?;
    let Some(link) = kit.first() else { return Ok(case.decide(policies)) };
    let found = Found {
        digest: link.digest,
        manifest: &link.manifest_bytes,
        kitfile: link.kitfile_json(),
        parent: link.contents.parent.as_ref(),
        material: &kits.material(link).await?,
    };
    let decision = case.decide_about(policies, &found, &kits.config().limits);
    if decision.verdict() == Verdict::Deny || decision.models().is_empty() {
        return Ok(decision);
    }
    let files = kits.open_files(kit).await?;
    let mut judgements = Vec::new();
    for demand in decision.models() {
        judgements.push(files.judgement(0, demand).await?);
    }
    Ok(decision.judged(&judgements))
}

fn write_cases(out: &mut dyn Write, document: &PolicyTest) -> io::Result<()> {
    document.cases.iter().try_for_each(|case| {
        let word = if case.ok { "ok" } else { "--" };
        writeln!(out, "{word:<3} {}: {}", text::line(&case.name), case.decision.name())?;
        let Some(error) = &case.error else { return Ok(()) };
        writeln!(out, "    {}", text::line(error))?;
        case.reasons.iter().try_for_each(|reason| writeln!(out, "    {}", text::line(reason)))
    })
}
