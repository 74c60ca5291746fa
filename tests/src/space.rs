//! Network namespaces made by a test: a hub, and machines that reach each other through it over IPv4 and IPv6.

use std::{
    path::PathBuf,
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
};

/// One machine: a network namespace with addresses of both families. It goes with the value.
#[derive(Debug)]
pub struct Space {
    /// Its name.
    pub name: String,
    /// Its address.
    pub v4: String,
    /// Its address.
    pub v6: String,
}

/// Machines that reach each other. They go with the value.
#[derive(Debug)]
pub struct Spaces {
    /// The one in the middle.
    pub hub: Space,
    /// The others.
    pub machines: Vec<Space>,
}

fn run(program: &str, arguments: &str) -> Result<String, String> {
    let output = Command::new(program).args(arguments.split(' ')).output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

fn ip(arguments: &str) -> Result<String, String> {
    run("ip", arguments)
}

impl Space {
    fn make(name: String, host: u8) -> Result<Self, String> {
        ip(&format!("netns add {name}"))?;
        let space = Self { v4: format!("10.77.0.{host}"), v6: format!("fd77::{host}"), name };
        ip(&format!("-n {} link set lo up", space.name))?;
        // What is there is used as /etc/resolv.conf inside. No server is at this address: only a captured question is answered.
        let etc = space.etc();
        std::fs::create_dir_all(&etc).map_err(|error| format!("{}: {error}", etc.display()))?;
        std::fs::write(etc.join("resolv.conf"), "nameserver 10.77.0.99\noptions timeout:1 attempts:1\n")
            .map_err(|error| error.to_string())?;
        Ok(space)
    }

    fn etc(&self) -> PathBuf {
        PathBuf::from("/etc/netns").join(&self.name)
    }

    fn address(&self, device: &str) -> Result<(), String> {
        let name = &self.name;
        ip(&format!("-n {name} addr add {}/24 dev {device}", self.v4))?;
        ip(&format!("-n {name} addr add {}/64 dev {device} nodad", self.v6))?;
        ip(&format!("-n {name} link set {device} up")).map(drop)
    }

    /// A command that runs inside.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Runs words separated by spaces inside.
    ///
    /// # Panics
    /// When they cannot be run.
    pub fn run(&self, words: &str) -> Output {
        let mut words = words.split_whitespace();
        let program = words.next().expect("a program");
        self.command(program).args(words).output().expect("ip netns exec")
    }

    /// What curl makes of `arguments` inside: its exit code, the body where all went well, and the status.
    pub fn curl(&self, arguments: &str) -> (i32, String) {
        self.curl_as("", arguments)
    }

    /// As [`Space::curl`], started by way of `before`, for example as another user.
    ///
    /// # Panics
    /// When it cannot be run.
    pub fn curl_as(&self, before: &str, arguments: &str) -> (i32, String) {
        let words = format!("{before} curl -s -g -m 10 -w %{{http_code}} {arguments}");
        let output = self.run(words.trim());
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let status = text.get(text.len().saturating_sub(3)..).unwrap_or_default();
        let said = if status.starts_with('2') { text } else { status.to_owned() };
        (output.status.code().unwrap_or(-1), said)
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = ip(&format!("netns del {}", self.name));
        let _ = std::fs::remove_dir_all(self.etc());
    }
}

impl Spaces {
    /// Makes a hub and so many machines. None where that does not work: then the reason is said, loudly.
    pub fn make(count: u8) -> Option<Self> {
        match Self::try_make(count) {
            Ok(spaces) => Some(spaces),
            Err(reason) => {
                // Past the capture of output: a test that did not run must not look like one that did.
                let notice =
                    format!("\n######## NOT TESTED: capture needs root, network namespaces and nftables: {reason} ########\n\n");
                let _ = std::fs::write("/dev/stderr", &notice);
                eprintln!("{notice}");
                None
            }
        }
    }

    fn try_make(count: u8) -> Result<Self, String> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("or{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let mut spaces = Self { hub: Space::make(format!("{prefix}-hub"), 1)?, machines: Vec::new() };
        let hub = spaces.hub.name.clone();
        ip(&format!("-n {hub} link add br0 type bridge"))?;
        spaces.hub.address("br0")?;
        for number in 0..count {
            let machine = Space::make(format!("{prefix}-{number}"), number + 2)?;
            ip(&format!("-n {hub} link add port{number} type veth peer name eth0 netns {}", machine.name))?;
            ip(&format!("-n {hub} link set port{number} master br0 up"))?;
            machine.address("eth0")?;
            ip(&format!("-n {} route add default via {}", machine.name, spaces.hub.v4))?;
            ip(&format!("-n {} -6 route add default via {}", machine.name, spaces.hub.v6))?;
            spaces.machines.push(machine);
        }
        let redirect = "add table inet probe; add chain inet probe c { type nat hook output priority -100; }; \
                        add rule inet probe c tcp dport 9 redirect to :9; delete table inet probe";
        let output = spaces.hub.command("nft").arg(redirect).output().map_err(|error| error.to_string())?;
        if !output.status.success() {
            return Err(format!("nft cannot redirect: {}", String::from_utf8_lossy(&output.stderr)));
        }
        Ok(spaces)
    }
}
