//! How a command's end is told to the client, on the error stream. Pure.

use bytes::Bytes;
use serde_json::json;

use super::protocol::StatusForm;

/// How a streamed command or attachment ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// With this exit code; an attachment ends with 0 whatever the container says.
    Exited(i32),
    /// It could not be done; the text says why.
    Failed(String),
}

/// The bytes for the error stream; empty: nothing is to be sent.
pub fn status_bytes(ending: &Ending, form: StatusForm) -> Bytes {
    match (ending, form) {
        (Ending::Exited(0), StatusForm::Text) => Bytes::new(),
        (Ending::Exited(0), StatusForm::Json) => {
            json!({"metadata": {}, "status": "Success"}).to_string().into()
        }
        (Ending::Exited(code), StatusForm::Text) => {
            format!("command terminated with non-zero exit code: exit status {code}").into()
        }
        (Ending::Exited(code), StatusForm::Json) => json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        })
        .to_string()
        .into(),
        (Ending::Failed(why), StatusForm::Text) => why.clone().into(),
        (Ending::Failed(why), StatusForm::Json) => json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("Internal error occurred: {why}"),
            "reason": "InternalError",
            "details": {"causes": [{"message": why}]},
            "code": 500,
        })
        .to_string()
        .into(),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(ending: Ending, form: StatusForm, expected: Expect) {
        expected.assert_eq(std::str::from_utf8(&status_bytes(&ending, form)).expect("text"));
    }

    #[test]
    fn endings_as_kubectl_reads_them() {
        check(Ending::Exited(0), StatusForm::Text, expect![""]);
        check(Ending::Exited(0), StatusForm::Json, expect![[r#"{"metadata":{},"status":"Success"}"#]]);
        check(
            Ending::Exited(3),
            StatusForm::Text,
            expect!["command terminated with non-zero exit code: exit status 3"],
        );
        let status: serde_json::Value =
            serde_json::from_slice(&status_bytes(&Ending::Exited(3), StatusForm::Json)).expect("JSON");
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(status["details"]["causes"][0], json!({"reason": "ExitCode", "message": "3"}));
        check(Ending::Failed("no sh".into()), StatusForm::Text, expect!["no sh"]);
        let status: serde_json::Value =
            serde_json::from_slice(&status_bytes(&Ending::Failed("no sh".into()), StatusForm::Json))
                .expect("JSON");
        assert_eq!(
            (&status["code"], &status["message"]),
            (&json!(500), &json!("Internal error occurred: no sh"))
        );
    }
}
