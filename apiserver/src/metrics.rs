//! Numbers about the server, in Prometheus' text format.

use std::{collections::BTreeMap, fmt::Write, time::Duration};

use api::registry;
use parking_lot::Mutex;

use crate::app::App;

/// What requests came to.
#[derive(Default)]
pub(crate) struct Metrics {
    requests: Mutex<BTreeMap<Key, Sum>>,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    verb: String,
    resource: &'static str,
    subresource: String,
    code: u16,
}

#[derive(Default)]
struct Sum {
    count: u64,
    time: Duration,
}

impl Metrics {
    /// Counts one answered request. Only verbs and subresources that exist are told apart.
    pub(crate) fn count(
        &self,
        verb: &str,
        resource: &'static str,
        subresource: &str,
        code: u16,
        time: Duration,
    ) {
        let known = matches!(
            verb,
            "get"
                | "list"
                | "watch"
                | "create"
                | "update"
                | "patch"
                | "delete"
                | "deletecollection"
                | "post"
                | "put"
        );
        let verb = if known { verb } else { "other" }.to_owned();
        let key = Key { verb, resource, subresource: subresource.to_owned(), code };
        let mut all = self.requests.lock();
        let sum = all.entry(key).or_default();
        sum.count += 1;
        sum.time += time;
    }
}

/// The whole text.
pub(crate) fn render(app: &App) -> String {
    let mut out = String::from(
        "# HELP apiserver_request_total Requests by verb, resource, subresource and code.\n\
         # TYPE apiserver_request_total counter\n",
    );
    let all = app.metrics.requests.lock();
    let label = |k: &Key| {
        format!(
            "{{verb=\"{}\",resource=\"{}\",subresource=\"{}\",code=\"{}\"}}",
            k.verb, k.resource, k.subresource, k.code
        )
    };
    for (key, sum) in all.iter() {
        let _ = writeln!(out, "apiserver_request_total{} {}", label(key), sum.count);
    }
    out.push_str(
        "# HELP apiserver_request_duration_seconds_sum Time until the answer began.\n\
         # TYPE apiserver_request_duration_seconds_sum counter\n",
    );
    for (key, sum) in all.iter() {
        let _ =
            writeln!(out, "apiserver_request_duration_seconds_sum{} {}", label(key), sum.time.as_secs_f64());
    }
    out.push_str(
        "# HELP apiserver_storage_objects Objects in the store.\n# TYPE apiserver_storage_objects gauge\n",
    );
    let mut seen = std::collections::HashSet::new();
    for row in registry::all().iter().filter(|r| r.stored() && seen.insert(r.storage)) {
        let count = app.cache.count(row.storage);
        let _ = writeln!(out, "apiserver_storage_objects{{resource=\"{}\"}} {count}", row.qualified());
    }
    let _ = write!(
        out,
        "# HELP apiserver_longrunning_requests Watches that are open.\n# TYPE apiserver_longrunning_requests gauge\n\
         apiserver_longrunning_requests{{verb=\"watch\"}} {}\n\
         # HELP apiserver_cache_revision The revision that the cache has seen.\n# TYPE apiserver_cache_revision gauge\n\
         apiserver_cache_revision {}\n",
        app.cache.watchers(),
        app.cache.revision()
    );
    out
}
