//! The referrers API (distribution-spec, "Listing Referrers"), page by page.

use reqwest::Method;
use reqwest::Response;
use reqwest::StatusCode;
use reqwest::header::CONTENT_TYPE;
use reqwest::header::HeaderMap;
use reqwest::header::LINK;

use crate::digest::Digest;
use crate::source::METADATA_LIMIT;
use crate::source::SourceError;
use crate::source::companions::Companion;
use crate::source::companions::Referrers;
use crate::source::registry::Registry;
use crate::source::registry::failure::Failure;
use crate::source::registry::request::INDEX;
use crate::source::registry::request::Part;
use crate::source::registry::request::Request;

/// Pages that are asked for at most: a list that never ends is no list.
const PAGES: usize = 100;

impl Registry {
    /// What the registry lists as referrers of a manifest, at least `enough` of them if there are so many.
    /// `None` where it does not know how to: 404, 400, 405, 406, 501, or something else than an index.
    pub(in crate::source) async fn referrers(
        &self,
        manifest: &Digest,
        enough: usize,
    ) -> Result<Option<Vec<Companion>>, SourceError> {
        let what = format!("referrers of {manifest} in {}", self.name());
        let mut found = Vec::new();
        let mut path = format!("referrers/{manifest}");
        for page in 0..PAGES {
            let (list, next) = match self.page(&what, &path, manifest).await? {
                Some(answer) => answer,
                None if page == 0 => return Ok(None),
                None => {
                    return Err(SourceError::Malformed {
                        what,
                        why: "the list breaks off after its first page".into(),
                    });
                }
            };
            found.extend(list.companions("the registry's list of referrers"));
            match next {
                Some(next) if found.len() < enough => path = next,
                _ => return Ok(Some(found)),
            }
        }
        Err(SourceError::Malformed { what, why: format!("the list has more than {PAGES} pages") })
    }

    async fn page(
        &self,
        what: &str,
        path: &str,
        manifest: &Digest,
    ) -> Result<Option<(Referrers, Option<String>)>, SourceError> {
        let mut request = Request::new(self, what.to_owned(), path.to_owned());
        loop {
            let failure = match request.send(Method::GET, Part::Whole).await {
                Ok(response) if !is_index(response.headers()) => return Ok(None),
                Ok(response) => {
                    let next = next_page(&response, manifest);
                    match request.body(response, METADATA_LIMIT).await {
                        Ok(bytes) => {
                            let list = serde_json::from_slice(&bytes).map_err(|error| SourceError::Malformed {
                                what: what.to_owned(),
                                why: error.to_string(),
                            })?;
                            return Ok(Some((list, next)));
                        }
                        Err(failure) => failure,
                    }
                }
                Err(Failure::Missing) => return Ok(None),
                Err(Failure::Refused(
                    StatusCode::BAD_REQUEST | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_ACCEPTABLE,
                )) => return Ok(None),
                Err(Failure::Busy(StatusCode::NOT_IMPLEMENTED, _)) => return Ok(None),
                Err(failure) => failure,
            };
            request.after(failure).await?;
        }
    }
}

fn is_index(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case(INDEX))
}

/// The page that `Link` (RFC 8288) names as the next one, as a path below the repository. Only the query
/// is taken from it: a registry cannot send us elsewhere.
fn next_page(response: &Response, manifest: &Digest) -> Option<String> {
    let links = response.headers().get_all(LINK).iter().filter_map(|value| value.to_str().ok());
    let target = links.flat_map(|value| value.split(',')).find_map(next_target)?;
    let url = response.url().join(target).ok()?;
    Some(format!("referrers/{manifest}?{}", url.query()?))
}

fn next_target(link: &str) -> Option<&str> {
    let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
    let is_next = parameters.split(';').any(|parameter| {
        let parameter = parameter.trim();
        parameter.split_once('=').is_some_and(|(name, value)| {
            name.trim().eq_ignore_ascii_case("rel") && value.trim().trim_matches('"').eq_ignore_ascii_case("next")
        })
    });
    is_next.then_some(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_told_by_its_relation() {
        assert_eq!(next_target(r#"</v2/a/referrers/x?n=2&last=y>; rel="next""#), Some("/v2/a/referrers/x?n=2&last=y"));
        assert_eq!(next_target("</v2/x?a=b>;rel=next"), Some("/v2/x?a=b"));
        assert_eq!(next_target(r#"</v2/x>; rel="prev""#), None);
        assert_eq!(next_target("nonsense"), None);
    }
}
