//! Who may have what this cache holds of a kit: whoever its source lets have it.
//!
//! The source is asked at every mount, unless it has let anybody have that kit before. Where it cannot be asked, its
//! last answer to the same user stands for a while ([`Query::access_ttl`]). Otherwise a cache that many share would
//! show a private kit to those who only know its digest.

use std::time::SystemTime;

use crate::digest::Digest;
use crate::layers::Workshop;
use crate::resolve::Freshness;
use crate::resolve::Query;
use crate::resolve::ResolveError;
use crate::source::Source;
use crate::source::SourceError;
use crate::source::Visitor;

/// Asks whether the kept kit of that digest may be had by whoever asks now; `reference` is for messages.
pub(super) async fn check(
    workshop: &Workshop,
    query: &Query<'_>,
    reference: &str,
    source: &Source,
    digest: &Digest,
) -> Result<(), ResolveError> {
    let (store, place) = (&workshop.store, source.pinned(digest).to_string());
    if store.admitted(&place, Visitor::ANYBODY.secret()).is_some() {
        return Ok(());
    }
    let denied = |why: &str| ResolveError::NotAdmitted { reference: reference.into(), why: why.into() };
    if query.freshness != Freshness::Offline || source.is_local() {
        match source.admits(digest).await {
            Ok(()) => {
                remember(workshop, source, digest);
                return Ok(());
            }
            Err(SourceError::Unreachable { .. }) if query.freshness == Freshness::Prefer => {}
            Err(error) => {
                if matches!(error, SourceError::Denied { .. } | SourceError::NotFound(_))
                    && let Ok(visitor) = source.visitor().await
                {
                    store.forget_admitted(&place, visitor.secret());
                }
                return Err(error.into());
            }
        }
    }
    let visitor = match source.visitor().await {
        Ok(visitor) => visitor,
        Err(error @ SourceError::Configuration { .. }) => return Err(error.into()),
        Err(_) => return Err(denied("the credentials cannot be had")),
    };
    let Some(admitted) = store.admitted(&place, visitor.secret()) else {
        return Err(denied("its registry cannot be asked, and has not let these credentials have it before"));
    };
    // A clock that was set back makes no answer young.
    match SystemTime::now().duration_since(admitted) {
        Ok(age) if age <= query.access_ttl => Ok(()),
        _ => Err(denied("its registry cannot be asked, and its last answer is older than --access-ttl")),
    }
}

/// Remembers that the source has just let us have a kit. Where that fails it has to be there the next time.
pub(super) fn remember(workshop: &Workshop, source: &Source, digest: &Digest) {
    let place = source.pinned(digest).to_string();
    if let Err(error) = workshop.store.keep_admitted(&place, source.asked_as().secret()) {
        tracing::warn!(%digest, %error, "cannot remember who may have a kit");
    }
}
