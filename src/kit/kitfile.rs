//! stub
use crate::kit::config::Kitfile;
use crate::verify::FromVerified;
use bytes::Bytes;
#[derive(Clone, Debug)]
pub struct Yaml(Bytes);
impl Yaml {
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }
}
impl FromVerified<Kitfile> for Yaml {
    type Error = KitfileTooLarge;
    fn from_verified(_kitfile: &Kitfile) -> Result<Self, KitfileTooLarge> {
        Ok(Self(Bytes::new()))
    }
}
#[derive(Debug, thiserror::Error)]
#[error("the Kitfile has more than 33554432 bytes")]
pub struct KitfileTooLarge;
