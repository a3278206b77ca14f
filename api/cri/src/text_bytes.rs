//! Environment values in JSON: text where they are UTF-8, else a list of byte values.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[derive(Deserialize)]
#[serde(untagged)]
enum Either {
    Text(String),
    Bytes(Vec<u8>),
}

/// Writes a string if `bytes` are UTF-8, else an array of numbers.
pub fn serialize<S: Serializer>(bytes: &[u8], out: S) -> Result<S::Ok, S::Error> {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.serialize(out),
        Err(_) => bytes.serialize(out),
    }
}

/// Reads what [`serialize`] wrote.
pub fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<u8>, D::Error> {
    Ok(match Either::deserialize(input)? {
        Either::Text(text) => text.into_bytes(),
        Either::Bytes(bytes) => bytes,
    })
}

#[cfg(test)]
mod tests {
    use crate::v1::KeyValue;

    #[test]
    fn values_survive_json() {
        for value in [b"plain".to_vec(), vec![0xff, 0, 7], Vec::new()] {
            let pair = KeyValue { key: "K".into(), value };
            let text = serde_json::to_string(&pair).expect("maps to JSON");
            assert_eq!(serde_json::from_str::<KeyValue>(&text).expect("reads back"), pair);
        }
        let pair = KeyValue { key: "K".into(), value: b"v".to_vec() };
        assert_eq!(serde_json::to_string(&pair).expect("maps to JSON"), r#"{"key":"K","value":"v"}"#);
    }
}
