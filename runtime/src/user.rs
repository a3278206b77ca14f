//! Who a container runs as: numbers and names against the image's own `/etc/passwd` and `/etc/group`.
//!
//! Guarantees: a number above 2147483647 or below 0 is refused, never wrapped; a name made of digits only is
//! a number, so that no line of `/etc/passwd` can turn it into another user.

use crate::error::RuntimeError;
use crate::spec::{GroupsPolicy, ResolvedUser, User};

/// Largest id that Kubernetes accepts.
const LARGEST: u64 = 2_147_483_647;

/// Finds the numbers. `passwd` and `group` are the files' contents, empty when there are none.
pub fn resolve(user: &User, passwd: &str, group: &str) -> Result<ResolvedUser, RuntimeError> {
    let (name, group_name) = match user.user.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (user.user.as_str(), None),
    };
    if name.chars().any(char::is_whitespace) || user.user.matches(':').count() > 1 {
        return Err(RuntimeError::invalid(format!(
            "user {:?} is refused: `uid`, `name`, `uid:gid` or `name:group` is wanted",
            user.user
        )));
    }
    let entry = match (name, number("user", name)?) {
        ("", _) => by_id(passwd, 0),
        (_, Some(uid)) => by_id(passwd, uid).or(Some(Entry { name: "", uid, gid: 0, home: "" })),
        (_, None) => Some(by_name(passwd, name).ok_or_else(|| {
            RuntimeError::invalid(format!(
                "user {name:?} is not in the image's /etc/passwd: add it there, or use a number"
            ))
        })?),
    };
    let entry = entry.unwrap_or(Entry { name: "", uid: 0, gid: 0, home: "" });
    let gid = match (user.group, group_name) {
        (Some(gid), _) => {
            limit("group", u64::from(gid))?;
            gid
        }
        (None, Some("")) | (None, None) => entry.gid,
        (None, Some(text)) => match number("group", text)? {
            Some(gid) => gid,
            None => groups(group).find(|line| line.name == text).map(|line| line.gid).ok_or_else(|| {
                RuntimeError::invalid(format!(
                    "group {text:?} is not in the image's /etc/group: add it there, or use a number"
                ))
            })?,
        },
    };
    let mut all = vec![gid];
    for extra in &user.supplementary {
        limit("supplementary group", u64::from(*extra))?;
        all.push(*extra);
    }
    if user.policy == GroupsPolicy::Merge && !entry.name.is_empty() {
        all.extend(groups(group).filter(|line| line.has(entry.name)).map(|line| line.gid));
    }
    all.sort_unstable();
    all.dedup();
    let home = if entry.home.is_empty() { "/" } else { entry.home };
    Ok(ResolvedUser { uid: entry.uid, gid, groups: all, home: home.to_owned() })
}

/// A number, if the text is one; an error if it is one that no user can have.
fn number(what: &str, text: &str) -> Result<Option<u32>, RuntimeError> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(None);
    }
    let refused = || {
        RuntimeError::invalid(format!("{what} {text:?} is refused: a number from 0 to {LARGEST} is wanted"))
    };
    if digits.len() != text.len() {
        return Err(refused());
    }
    let number: u64 = digits.parse().map_err(|_| refused())?;
    limit(what, number)?;
    u32::try_from(number).map(Some).map_err(|_| refused())
}

fn limit(what: &str, number: u64) -> Result<(), RuntimeError> {
    if number <= LARGEST {
        return Ok(());
    }
    Err(RuntimeError::invalid(format!("{what} {number} is refused: a number from 0 to {LARGEST} is wanted")))
}

#[derive(Clone, Copy)]
struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// Well-formed lines of a passwd file; others are skipped, as the C library does.
fn entries(passwd: &str) -> impl Iterator<Item = Entry<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        let mut numbers = fields.by_ref().skip(1);
        let uid = numbers.next()?.parse().ok()?;
        let gid = numbers.next()?.parse().ok()?;
        let home = fields.nth(1).unwrap_or_default();
        let fits = |id: u32| u64::from(id) <= LARGEST;
        (fits(uid) && fits(gid)).then_some(Entry { name, uid, gid, home })
    })
}

fn by_id(passwd: &str, uid: u32) -> Option<Entry<'_>> {
    entries(passwd).find(|entry| entry.uid == uid)
}

fn by_name<'a>(passwd: &'a str, name: &str) -> Option<Entry<'a>> {
    entries(passwd).find(|entry| entry.name == name)
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl Group<'_> {
    fn has(&self, user: &str) -> bool {
        self.members.split(',').any(|member| member.trim() == user)
    }
}

fn groups(group: &str) -> impl Iterator<Item = Group<'_>> {
    group.lines().filter_map(|line| {
        let mut fields = line.splitn(4, ':');
        let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        let gid = fields.nth(1)?.parse().ok()?;
        (u64::from(gid) <= LARGEST).then_some(Group { name, gid, members: fields.next().unwrap_or_default() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:101:102:Web:/srv:/bin/false\n0000:x:7:7::/:/bin/sh\n\
                          1000:x:0:0::/evil:/bin/sh\nbig:x:4294967296:0::/:/x\nbroken\n";
    const GROUP: &str = "root:x:0:\nweb:x:102:\nlog:x:200:web,other\nssl:x:201:web\nroot2:x:300:root\n";

    fn check(user: User, want: Expect) {
        want.assert_eq(&match resolve(&user, PASSWD, GROUP) {
            Ok(found) => format!("{} {} {:?} {}", found.uid, found.gid, found.groups, found.home),
            Err(error) => error.to_string(),
        });
    }

    fn named(user: &str) -> User {
        User { user: user.to_owned(), ..User::default() }
    }

    #[test]
    fn users_are_found_or_refused() {
        check(named(""), expect!["0 0 [0, 300] /root"]);
        check(named("web"), expect!["101 102 [102, 200, 201] /srv"]);
        check(named("web:log"), expect!["101 200 [200, 201] /srv"]);
        check(named("web:7"), expect!["101 7 [7, 200, 201] /srv"]);
        check(named("101"), expect!["101 102 [102, 200, 201] /srv"]);
        check(named("5000"), expect!["5000 0 [0] /"]);
        check(named("5000:5001"), expect!["5000 5001 [5001] /"]);
        check(named(":log"), expect!["0 200 [200, 300] /root"]);
        check(named("1000"), expect!["1000 0 [0] /"]);
        check(named("0000"), expect!["0 0 [0, 300] /root"]);
        check(
            named("nobody"),
            expect![[r#"user "nobody" is not in the image's /etc/passwd: add it there, or use a number"#]],
        );
        check(
            named("web:nogroup"),
            expect![[r#"group "nogroup" is not in the image's /etc/group: add it there, or use a number"#]],
        );
        check(
            named("4294967296"),
            expect!["user 4294967296 is refused: a number from 0 to 2147483647 is wanted"],
        );
        check(
            named("2147483648"),
            expect!["user 2147483648 is refused: a number from 0 to 2147483647 is wanted"],
        );
        check(named("2147483647"), expect!["2147483647 0 [0] /"]);
        check(named("-1"), expect![[r#"user "-1" is refused: a number from 0 to 2147483647 is wanted"#]]);
        check(
            named("99999999999999999999999"),
            expect![[
                r#"user "99999999999999999999999" is refused: a number from 0 to 2147483647 is wanted"#
            ]],
        );
        check(
            named("web:4294967296"),
            expect!["group 4294967296 is refused: a number from 0 to 2147483647 is wanted"],
        );
        check(
            named("a:b:c"),
            expect![[r#"user "a:b:c" is refused: `uid`, `name`, `uid:gid` or `name:group` is wanted"#]],
        );
        check(
            named("big"),
            expect![[r#"user "big" is not in the image's /etc/passwd: add it there, or use a number"#]],
        );
    }

    #[test]
    fn groups_follow_the_policy() {
        let asked = User { group: Some(9), supplementary: vec![50, 9], ..named("web") };
        check(asked.clone(), expect!["101 9 [9, 50, 200, 201] /srv"]);
        check(User { policy: GroupsPolicy::Strict, ..asked }, expect!["101 9 [9, 50] /srv"]);
        check(
            User { supplementary: vec![4294967295], ..named("") },
            expect!["supplementary group 4294967295 is refused: a number from 0 to 2147483647 is wanted"],
        );
    }
}
