//! How much an image may demand of us.

/// Bounds on images, against archives and registries made to exhaust the node.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Manifests and indexes, bytes.
    pub manifest_bytes: u64,
    /// Image configurations, bytes.
    pub config_bytes: u64,
    /// Layers per image; overlayfs stacks no more than 500.
    pub layers: usize,
    /// A layer's unpacked size, bytes of tar stream or of files, whichever is more.
    pub layer_bytes: u64,
    /// A layer may always unpack to this many bytes...
    pub free_bytes: u64,
    /// ...and beyond them, to no more than this multiple of its compressed size.
    pub ratio: u64,
    /// Files, directories, links and so on per layer.
    pub entries: u64,
    /// Extended header or long name of one archive entry, bytes.
    pub header_bytes: u64,
    /// Extended attributes of one entry, bytes of names and values.
    pub xattr_bytes: usize,
    /// What to do with names that start with a slash.
    pub absolute_names: AbsoluteNames,
}

/// What to do with an archive entry whose name starts with a slash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AbsoluteNames {
    /// Refuse the layer.
    Refuse,
    /// Take the name as relative to the layer's root.
    Strip,
}

impl Default for Limits {
    fn default() -> Limits {
        const MIB: u64 = 1 << 20;
        Limits {
            manifest_bytes: 4 * MIB,
            config_bytes: 8 * MIB,
            layers: 500,
            layer_bytes: 64 * 1024 * MIB,
            free_bytes: 1024 * MIB,
            ratio: 200,
            entries: 2_000_000,
            header_bytes: MIB,
            xattr_bytes: 256 << 10,
            absolute_names: AbsoluteNames::Refuse,
        }
    }
}

impl Limits {
    /// How far a layer of `compressed` bytes may unpack.
    pub(crate) fn unpacked(&self, compressed: u64) -> u64 {
        self.layer_bytes.min(self.free_bytes.max(compressed.saturating_mul(self.ratio)))
    }
}
