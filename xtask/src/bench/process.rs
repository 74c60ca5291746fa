//! A process under measurement: started with its log in a file, ended when dropped, asked for its own CPU time and memory.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use crate::command;

/// A running program.
#[derive(Debug)]
pub(super) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; what it writes goes to `NAME.log` in `directory`.
    pub(super) fn start(name: &str, command: &mut Command, directory: &Path) -> anyhow::Result<Self> {
        let log = directory.join(format!("{}.log", name.replace(' ', "-")));
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {name} ({})", command.get_program().to_string_lossy()))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// Asks until `is_so` says yes.
    pub(super) fn wait_until(&mut self, what: &str, mut is_so: impl FnMut() -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !is_so() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended ({status}) before it was {what}:\n{}", self.name, self.tail());
            }
            if Instant::now() > deadline {
                bail!("{} is not {what} after 30 s:\n{}", self.name, self.tail());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// CPU time of all its living threads, as the scheduler counts it.
    pub(super) fn cpu(&self) -> anyhow::Result<Duration> {
        Ok(self.threads()?.values().sum())
    }

    /// CPU time of each living thread, by its number.
    pub(super) fn threads(&self) -> anyhow::Result<HashMap<OsString, Duration>> {
        let threads =
            fs::read_dir(format!("/proc/{}/task", self.child.id())).with_context(|| format!("{} is gone", self.name))?;
        threads
            .map(|thread| {
                let thread = thread?;
                let text = fs::read_to_string(thread.path().join("schedstat")).context("this kernel keeps no schedstat")?;
                let spent = text.split_whitespace().next().and_then(|field| field.parse().ok());
                Ok((thread.file_name(), Duration::from_nanos(spent.context("schedstat is not understood")?)))
            })
            .collect()
    }

    /// Open descriptors: a little more than its connections.
    pub(super) fn descriptors(&self) -> anyhow::Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.child.id())).with_context(|| format!("{} is gone", self.name))?.count())
    }

    /// Resident memory, bytes.
    pub(super) fn resident(&self) -> anyhow::Result<u64> {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.child.id())).with_context(|| format!("{} is gone", self.name))?;
        let field = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes = field.and_then(|field| field.split_whitespace().next()).and_then(|number| number.parse::<u64>().ok());
        Ok(kibibytes.context("the kernel does not say how much memory it has")? * 1024)
    }

    /// Asks it to end, and waits until it has.
    pub(super) fn finish(&mut self) -> anyhow::Result<()> {
        command::output(Command::new("kill").arg(self.child.id().to_string()))?;
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                bail!("{} does not end when asked to:\n{}", self.name, self.tail());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Ends it at once, as a kill does.
    pub(super) fn end(&mut self) {
        // It may be gone already; then there is nothing to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// The end of its log, for messages.
    fn tail(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines.iter().skip(lines.len().saturating_sub(15)).map(|line| format!("  | {line}\n")).collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_measured_while_it_runs_and_ended_when_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo started; i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; exec sleep 60"]);
        let mut process = Process::start("spinner", &mut command, directory.path()).unwrap();
        let id = process.child.id();
        let name = move || fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
        process.wait_until("asleep", || name() == "sleep\n").unwrap();
        assert!(process.cpu().unwrap() > Duration::from_millis(5) && process.resident().unwrap() > 100_000);
        assert!(process.tail().contains("started"));
        drop(process);
        assert!(!Path::new(&format!("/proc/{id}")).exists());
    }

    #[test]
    fn a_process_that_ends_too_early_is_quoted() {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo no room left; exit 3"]);
        let mut process = Process::start("broken", &mut command, directory.path()).unwrap();
        let error = process.wait_until("ready", || false).unwrap_err().to_string();
        assert!(error.contains("before it was ready") && error.contains("no room left"), "{error}");
    }
}
