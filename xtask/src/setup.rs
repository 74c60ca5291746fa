//! What the tests need beyond cargo: real programs that nobody here wrote.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, bail};

use crate::{command, python};

/// A program and the Debian package it comes from.
struct Need {
    program: &'static str,
    package: &'static str,
    why: &'static str,
}

const NEEDS: &[Need] = &[
    Need { program: "nginx", package: "nginx", why: "the service behind an agent" },
    Need { program: "curl", package: "curl", why: "a client that nobody here wrote" },
    Need { program: "openssl", package: "openssl", why: "certificates with weak keys and signatures" },
    Need { program: "faketime", package: "faketime", why: "a clock that is wrong" },
    Need { program: "wrk", package: "wrk", why: "HTTP/1.1 load" },
    Need { program: "apache2", package: "apache2-bin", why: "a server that reads requests its own way" },
    Need { program: "h2load", package: "nghttp2-client", why: "HTTP/2 load" },
    Need { program: "ip", package: "iproute2", why: "network namespaces for tests of capture" },
    Need { program: "nft", package: "nftables", why: "capture rules" },
    Need { program: "dig", package: "bind9-dnsutils", why: "a resolver that nobody here wrote" },
    Need { program: "dnsmasq", package: "dnsmasq-base", why: "a name server that nobody here wrote" },
    Need { program: "pg_ctlcluster", package: "postgresql", why: "a store that several control planes share" },
    Need { program: "/usr/share/tomcat10/bin/catalina.sh", package: "tomcat10", why: "a server that reads paths its own way" },
];

/// Installs what is missing as root on Debian; elsewhere says what is missing.
///
/// # Errors
/// When something is missing in the end.
pub(crate) fn run() -> anyhow::Result<()> {
    programs()?;
    python::ready(|packages| {
        if !command::exists("apt-get") || !is_root() {
            bail!("the tests need Python with its `venv` module (Debian packages: {})", packages.join(" "));
        }
        install(packages)
    })
}

fn programs() -> anyhow::Result<()> {
    let missing: Vec<&Need> = NEEDS.iter().filter(|need| !command::exists(need.program)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().map(|need| need.package).collect();
    if !command::exists("apt-get") || !is_root() {
        bail!("{}", explain(&missing, &packages));
    }
    install(&packages)?;
    match missing.iter().find(|need| !command::exists(need.program)) {
        Some(need) => bail!("package `{}` was installed, but there is no program `{}`", need.package, need.program),
        None => Ok(()),
    }
}

fn install(packages: &[&str]) -> anyhow::Result<()> {
    crate::say(&format!("installing {}", packages.join(" ")));
    if !has_lists() {
        apt(&["update"])?;
    }
    let install = || apt(&[&["install", "--no-install-recommends"], packages].concat());
    if install().is_err() {
        // The lists may be older than the archive.
        apt(&["update"])?;
        install()?;
    }
    Ok(())
}

fn explain(missing: &[&Need], packages: &[&str]) -> String {
    let mut text = "the tests need programs that are not here:\n".to_owned();
    for need in missing {
        text.push_str(&format!("  {:<8} {} (Debian package `{}`)\n", need.program, need.why, need.package));
    }
    text + &format!(
        "on Debian and its kin: sudo apt-get install {}\nelsewhere: install programs of these names and run this again",
        packages.join(" ")
    )
}

fn apt(words: &[&str]) -> anyhow::Result<()> {
    let mut apt = Command::new("apt-get");
    // RUNLEVEL=1: packages must not start the services they bring. The tests start their own.
    apt.arg("-qq").arg("-y").args(words).env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1");
    command::output(&mut apt).map(drop).context("apt-get could not install what the tests need")
}

fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    // Real, effective, saved, file system.
    uids.split_whitespace().nth(1) == Some("0")
}

fn has_lists() -> bool {
    let is_list = |entry: fs::DirEntry| entry.file_name().to_string_lossy().contains("_Packages");
    fs::read_dir(Path::new("/var/lib/apt/lists")).is_ok_and(|entries| entries.flatten().any(is_list))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_the_way_to_get_it() {
        let text = explain(&[&NEEDS[0]], &["nginx"]);
        assert!(text.contains("nginx ") && text.contains("sudo apt-get install nginx"), "{text}");
    }
}
