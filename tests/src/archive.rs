//! Image archives with layers that nobody should make.

use sha2::{Digest, Sha256};

/// One member of a tar archive, as raw as it needs to be.
#[derive(Debug, Clone)]
pub struct Member<'a> {
    /// Its name, unchecked.
    pub name: &'a str,
    /// tar's type flag: `0` file, `1` hard link, `2` symbolic link, `5` directory.
    pub kind: u8,
    /// Where a link points.
    pub link: &'a str,
    /// A file's content.
    pub data: &'a [u8],
}

/// A tar archive of these members.
pub fn tar(members: &[Member<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    for member in members {
        let mut header = [0_u8; 512];
        header[..member.name.len()].copy_from_slice(member.name.as_bytes());
        let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
        put(100, "0000755");
        put(108, "0000000");
        put(116, "0000000");
        put(124, &format!("{:011o}", member.data.len()));
        put(136, "00000000000");
        put(148, "        ");
        put(157, member.link);
        put(257, "ustar\x0000");
        header[156] = member.kind;
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        out.extend_from_slice(&header);
        out.extend_from_slice(member.data);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

/// A docker-save archive of one image, `name`, with one layer.
pub fn saved_image(name: &str, layer: &[u8]) -> Vec<u8> {
    saved_image_of(name, "{}", &[layer.to_vec()])
}

/// The same with several layers, the lowest first, and with what its configuration says to runtimes (JSON).
pub fn saved_image_of(name: &str, says: &str, layers: &[Vec<u8>]) -> Vec<u8> {
    let digest = |layer: &Vec<u8>| {
        let hex: String = Sha256::digest(layer).iter().map(|byte| format!("{byte:02x}")).collect();
        format!(r#""sha256:{hex}""#)
    };
    let ids = layers.iter().map(digest).collect::<Vec<_>>().join(",");
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{says},"rootfs":{{"type":"layers","diff_ids":[{ids}]}},"history":[]}}"#
    );
    let names: Vec<String> = (0..layers.len()).map(|number| format!("layer-{number}.tar")).collect();
    let listed = names.iter().map(|name| format!(r#""{name}""#)).collect::<Vec<_>>().join(",");
    let manifest = format!(r#"[{{"Config":"config.json","RepoTags":["{name}"],"Layers":[{listed}]}}]"#);
    let file = |name, data| Member { name, kind: b'0', link: "", data };
    let mut members =
        vec![file("manifest.json", manifest.as_bytes()), file("config.json", config.as_bytes())];
    members.extend(names.iter().zip(layers).map(|(name, layer)| file(name, layer)));
    tar(&members)
}
