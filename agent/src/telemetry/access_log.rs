//! The access log: workers hand over whole blocks of lines; a writer thread writes. Full means dropped and counted, never waited.

use std::{
    cell::RefCell,
    io::Write,
    path::PathBuf,
    str::FromStr,
    sync::{
        Arc,
        mpsc::{SyncSender, sync_channel},
    },
    time::Duration,
};

use outrider_runtime::Tasks;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::oneshot;

use super::log_file::LogFile;

/// Blocks that may wait for the writer; two for each worker if that is more, since all hand over what they have at the same time.
const BLOCKS: usize = 64;
/// Size at which a worker hands a block over.
const BLOCK: usize = 64 << 10;
/// How long the writer sleeps once it has written all there is, although blocks may come: to be woken for each costs as much as
/// writing hundreds of lines. Blocks that wait meanwhile are a small part of those that may.
const REST: Duration = Duration::from_millis(10);

/// Where lines go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AccessLogTarget {
    /// Standard output.
    #[default]
    Stdout,
    /// Nowhere.
    Off,
    /// Appended to a file, or to the one that takes its place.
    File(PathBuf),
}

impl std::fmt::Display for AccessLogTarget {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stdout => out.write_str("stdout"),
            Self::Off => out.write_str("off"),
            Self::File(path) => path.display().fmt(out),
        }
    }
}

impl FromStr for AccessLogTarget {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "-" | "stdout" => Self::Stdout,
            "off" => Self::Off,
            path => Self::File(path.into()),
        })
    }
}

/// One worker's end of the access log.
#[derive(Debug)]
pub struct AccessLog {
    block: RefCell<Vec<u8>>,
    sender: Option<SyncSender<Vec<u8>>>,
    lines: RefCell<u64>,
    dropped: Arc<Counter>,
}

impl AccessLog {
    /// Starts the writer for so many workers, which `tasks` waits for: the last lines are written before the agent ends. Returns a worker's end.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn start(target: &AccessLogTarget, workers: usize, dropped: Arc<Counter>, tasks: &Tasks) -> std::io::Result<Self> {
        let mut output: Box<dyn Write + Send> = match target {
            AccessLogTarget::Off => return Ok(Self::over(None, dropped)),
            AccessLogTarget::Stdout => Box::new(std::io::stdout()),
            AccessLogTarget::File(path) => Box::new(LogFile::open(path)?),
        };
        let (sender, blocks) = sync_channel::<Vec<u8>>(BLOCKS.max(2 * workers));
        let (done, written) = oneshot::channel::<()>();
        std::thread::Builder::new().name("access-log".to_owned()).spawn(move || {
            // It waits for the first block only.
            while let Ok(first) = blocks.recv() {
                for block in std::iter::once(first).chain(blocks.try_iter()) {
                    // A full disk must not stop the service; the gap shows in the log itself.
                    let _ = output.write_all(&block).and_then(|()| output.flush());
                }
                std::thread::sleep(REST);
            }
            drop(done);
        })?;
        tasks.spawn_scoped(async move {
            let _ = written.await;
        });
        Ok(Self::over(Some(sender), dropped))
    }

    fn over(sender: Option<SyncSender<Vec<u8>>>, dropped: Arc<Counter>) -> Self {
        Self { block: RefCell::default(), sender, lines: RefCell::default(), dropped }
    }

    /// The same log, for another worker.
    pub fn another(&self) -> Self {
        Self::over(self.sender.clone(), self.dropped.clone())
    }

    /// Whether lines go anywhere.
    pub fn is_on(&self) -> bool {
        self.sender.is_some()
    }

    /// Adds a line that `write` writes.
    pub fn line(&self, write: impl FnOnce(&mut Vec<u8>)) {
        if self.sender.is_none() {
            return;
        }
        let mut block = self.block.borrow_mut();
        write(&mut block);
        *self.lines.borrow_mut() += 1;
        if block.len() >= BLOCK {
            self.hand_over(&mut block);
        }
    }

    /// Hands over what there is; called by a worker now and then, and at its end.
    pub fn flush(&self) {
        let mut block = self.block.borrow_mut();
        if !block.is_empty() {
            self.hand_over(&mut block);
        }
    }

    fn hand_over(&self, block: &mut Vec<u8>) {
        let lines = std::mem::take(&mut *self.lines.borrow_mut());
        let room = Vec::with_capacity(block.len().min(BLOCK + BLOCK / 8));
        let full = std::mem::replace(block, room);
        if self.sender.as_ref().is_some_and(|sender| sender.try_send(full).is_err()) {
            self.dropped.inc_by(lines);
        }
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.flush();
    }
}
