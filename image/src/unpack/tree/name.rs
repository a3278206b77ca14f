//! Names of entries, taken apart and judged. Pure.

use crate::limits::AbsoluteNames;
use crate::unpack::{UnpackError, show};

/// Deeper trees are refused: removing them takes a stack frame and a descriptor for each level.
const MAX_DEPTH: usize = 256;

/// A path within the layer: no `.`, no `..`, no empty parts, no leading slash. Empty for the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TreePath(Vec<u8>);

impl TreePath {
    /// Takes an entry's name (or a hard link's target) apart.
    pub(super) fn parse(name: &[u8], absolute: AbsoluteNames) -> Result<TreePath, UnpackError> {
        if name.starts_with(b"/") && absolute == AbsoluteNames::Refuse {
            return Err(UnpackError::Absolute { entry: show(name) });
        }
        if name.is_empty() {
            return Err(UnpackError::malformed(name, "its name is empty"));
        }
        let parts: Vec<&[u8]> =
            name.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
        if parts.contains(&b"..".as_slice()) {
            return Err(UnpackError::Traversal { entry: show(name) });
        }
        if parts.len() > MAX_DEPTH || parts.iter().any(|part| part.len() > 255) {
            return Err(UnpackError::malformed(name, "its name is too long or too deep"));
        }
        Ok(TreePath(parts.join(&b'/')))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The last part; `None` for the root.
    pub(super) fn name(&self) -> Option<&[u8]> {
        let start = self.0.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
        Some(&self.0[start..]).filter(|name| !name.is_empty())
    }

    /// All but the last part; empty for the root.
    pub(super) fn parent(&self) -> &[u8] {
        &self.0[..self.0.iter().rposition(|b| *b == b'/').unwrap_or(0)]
    }

    /// The directories on the way to it, topmost first.
    pub(super) fn prefixes(&self) -> impl Iterator<Item = TreePath> {
        let slashes = self.0.iter().enumerate().filter(|(_, b)| **b == b'/');
        slashes.map(|(at, _)| TreePath(self.0[..at].to_vec()))
    }
}

/// Entries that say something about the layers below.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Special<'a> {
    /// Nothing below shows through in this directory.
    Opaque,
    /// This name is not there.
    Whiteout(&'a [u8]),
    /// Bookkeeping of a file system that is no more.
    Ignored,
}

/// Tells special entries by the last part of their name.
pub(super) fn special<'a>(name: &'a [u8], entry: &[u8]) -> Result<Option<Special<'a>>, UnpackError> {
    if name == b".wh..wh..opq" {
        return Ok(Some(Special::Opaque));
    }
    if name.starts_with(b".wh..wh.") {
        return Ok(Some(Special::Ignored));
    }
    match name.strip_prefix(b".wh.") {
        None => Ok(None),
        Some(b"" | b"." | b"..") => Err(UnpackError::Traversal { entry: show(entry) }),
        Some(hidden) => Ok(Some(Special::Whiteout(hidden))),
    }
}

/// Attributes that a layer may set: file capabilities and users' own. What steers overlayfs or a security
/// module may not come from an image.
pub(in crate::unpack) fn keep_attribute(key: &[u8]) -> bool {
    key == b"security.capability" || (key.starts_with(b"user.") && !key.starts_with(b"user.overlay."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(name: &str) -> Result<String, String> {
        TreePath::parse(name.as_bytes(), AbsoluteNames::Refuse)
            .map(|p| String::from_utf8_lossy(p.bytes()).into_owned())
            .map_err(|err| err.to_string())
    }

    #[test]
    fn names() {
        assert_eq!(parse("./a//b/./c/"), Ok("a/b/c".into()));
        assert_eq!(parse("./"), Ok(String::new()));
        assert_eq!(parse("..a/b..").as_deref(), Ok("..a/b.."));
        assert_eq!(parse("a/../b"), Err("layer entry `a/../b`: refused, its name has `..`".into()));
        assert_eq!(parse("/etc"), Err("layer entry `/etc`: refused, its name is absolute".into()));
        assert!(parse("").is_err());
        assert!(parse(&"a/".repeat(300)).is_err());
        let stripped = TreePath::parse(b"//etc/x", AbsoluteNames::Strip).expect("allowed");
        assert_eq!((stripped.parent(), stripped.name()), (&b"etc"[..], Some(&b"x"[..])));
        let prefixes: Vec<_> = TreePath(b"a/b/c".to_vec()).prefixes().map(|p| p.0).collect();
        assert_eq!(prefixes, [b"a".to_vec(), b"a/b".to_vec()]);
    }

    #[test]
    fn whiteouts() {
        assert_eq!(special(b".wh.x", b"").ok(), Some(Some(Special::Whiteout(b"x"))));
        assert_eq!(special(b".wh..wh..opq", b"").ok(), Some(Some(Special::Opaque)));
        assert_eq!(special(b".wh..wh.plnk", b"").ok(), Some(Some(Special::Ignored)));
        assert_eq!(special(b"x.wh.", b"").ok(), Some(None));
        for bad in [&b".wh."[..], b".wh..", b".wh..."] {
            assert!(special(bad, b"").is_err());
        }
    }

    #[test]
    fn attributes() {
        assert!(keep_attribute(b"security.capability"));
        assert!(keep_attribute(b"user.note"));
        for bad in
            [&b"trusted.overlay.redirect"[..], b"user.overlay.opaque", b"security.selinux", b"system.x"]
        {
            assert!(!keep_attribute(bad));
        }
    }
}
