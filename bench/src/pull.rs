//! Pulling an image of many real files from a registry on loopback.
//!
//! Guarantees: the image is removed before each pull, so everything is downloaded and unpacked each time.
//! Assumes: Debian's docker-registry; `push.sh` of the tests' images, which needs curl.
//! Caveat: peak memory is the daemon's own; a helper program that it runs to decompress is not in it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use cri_api::Cri;
use cri_api::v1::{ImageSpec, PullImageRequest, RemoveImageRequest};

use crate::engine::{Engine, text};
use crate::measure::Measure;
use crate::memory;
use crate::process::{Daemon, find, run};
use crate::report::Report;

const ADDRESS: &str = "127.0.0.1:5055";
const REFERENCE: &str = "127.0.0.1:5055/large:1";

/// A registry that has the image.
#[derive(Debug)]
pub struct Registry {
    daemon: Daemon,
}

impl Registry {
    /// Starts a registry below `dir` and pushes the archive.
    ///
    /// # Errors
    /// It is not installed, does not answer, or refuses the push.
    pub async fn start(dir: &Path, archive: &Path, push: &Path) -> anyhow::Result<Registry> {
        let program = find("docker-registry").context("docker-registry is not installed")?;
        std::fs::create_dir_all(dir)?;
        let config = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage: {{filesystem: \
             {{rootdirectory: {}}}}}\nhttp: {{addr: '{ADDRESS}'}}\n",
            text(&dir.join("data"))?
        );
        let file: PathBuf = dir.join("config.yml");
        std::fs::write(&file, config)?;
        let log = dir.join("daemon.log");
        let mut daemon = Daemon::start("docker-registry", &program, &["serve", text(&file)?], &log)?;
        let look = || async { Ok(tokio::net::TcpStream::connect(ADDRESS).await?) };
        let (patience, every) = (Duration::from_secs(20), Duration::from_millis(50));
        daemon.until("the registry to listen", patience, every, look).await?;
        run(push, &[text(archive)?, REFERENCE]).await.context("push the image")?;
        Ok(Registry { daemon })
    }

    /// Ends it.
    ///
    /// # Errors
    /// It had ended before.
    pub async fn end(self) -> anyhow::Result<()> {
        self.daemon.end().await
    }
}

/// Each runtime pulls the image `rounds` times, in turns.
pub async fn run_rounds(report: &mut Report, engines: &[Engine], rounds: usize) {
    for round in 1..=rounds {
        for engine in engines {
            match pull(engine).await {
                Ok((time, peak)) => {
                    report.add(engine.who, Measure::Pull, time.as_secs_f64());
                    report.add(engine.who, Measure::PullPeak, peak);
                    let (name, time) = (engine.who.name(), time.as_secs_f64());
                    report.say(&format!("pull {round} of {rounds}: {name} {time:.2} s, peak {peak:.0} MB"));
                }
                Err(why) => report.fail(engine.who, &[Measure::Pull, Measure::PullPeak], &why),
            }
        }
    }
}

async fn pull(engine: &Engine) -> anyhow::Result<(Duration, f64)> {
    let image = Some(ImageSpec { image: REFERENCE.into(), ..Default::default() });
    let remove = RemoveImageRequest { image: image.clone() };
    engine.cri.remove_image(remove.clone()).await.context("RemoveImage")?;
    // What an earlier pull left to write back must not slow this one down.
    tokio::task::spawn_blocking(rustix::fs::sync).await.context("write back")?;
    let pid = engine.daemon.pid()?;
    memory::forget_peak(pid)?;
    let begin = Instant::now();
    let request = PullImageRequest { image, ..Default::default() };
    engine.cri.pull_image(request).await.context("PullImage")?;
    let time = begin.elapsed();
    let peak = memory::peak_mb(pid)?;
    engine.cri.remove_image(remove).await.context("RemoveImage")?;
    Ok((time, peak))
}
