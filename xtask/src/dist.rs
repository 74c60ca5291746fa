//! `cargo xtask dist`: the binaries of images. The agent is built twice: first with counters, under the load of the bench, then by
//! what was counted, and with its functions in that order. What runs often is compiled for speed, lies together and stays in the
//! processor's caches; what an agent never does is compiled for size, lies apart and takes no memory.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    hash::{DefaultHasher, Hasher as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};

use crate::{bench, command};

/// Programs of an image that are built as cargo builds them.
const PLAIN: [&str; 2] = ["outrider", "outrider-control-plane"];
const AGENT: &str = "outrider-agent";

/// Build the binaries of images, the agent by a profile that is taken now. Needs valgrind, and llvm-tools of rustup
#[derive(Debug, clap::Args)]
pub(crate) struct Dist {}

impl Dist {
    /// Builds them and says where they are.
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let tools = Tools::find()?;
        let image = bench::target_directory()?.join("image");
        let mut build = command::cargo();
        command::run(build.args(["build", "--profile", "dist"]).args(PLAIN.iter().flat_map(|package| ["-p", *package])))?;
        fs::create_dir_all(&image)?;
        for name in PLAIN {
            let built = bench::target_directory()?.join("dist").join(name);
            fs::copy(&built, image.join(name)).with_context(|| format!("cannot copy {}", built.display()))?;
        }
        fs::copy(agent(&tools)?, image.join(AGENT)).context("cannot copy the agent")?;
        crate::say(&format!("in {}: {}, {AGENT}", image.display(), PLAIN.join(", ")));
        Ok(())
    }
}

/// What reads profiles, of the very version of LLVM that the compiler has.
#[derive(Debug)]
pub(crate) struct Tools {
    profdata: PathBuf,
    host: String,
}

impl Tools {
    /// Finds them.
    ///
    /// # Errors
    /// When rustup has not installed them, or the linker of this platform cannot order functions.
    pub(crate) fn find() -> anyhow::Result<Self> {
        let root = command::output(Command::new("rustc").args(["--print", "sysroot"]))?;
        let version = command::output(Command::new("rustc").arg("-vV"))?;
        let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?.to_owned();
        // Elsewhere the compiler uses the system's linker, which may not know the option.
        if host != "x86_64-unknown-linux-gnu" {
            bail!("an agent with a profile is built on x86_64-unknown-linux-gnu only, and this is {host}");
        }
        let profdata = Path::new(root.trim()).join("lib/rustlib").join(&host).join("bin/llvm-profdata");
        if !profdata.is_file() {
            bail!("llvm-profdata is missing: `rustup component add llvm-tools`");
        }
        if !command::exists("valgrind") {
            bail!(
                "valgrind is missing, by which functions are found that the compiler does not count: `apt-get install valgrind`"
            );
        }
        Ok(Self { profdata, host })
    }
}

/// An agent with a profile, taken anew when the agent has changed.
///
/// # Errors
/// When it does not build, or a load fails.
pub(crate) fn agent(tools: &Tools) -> anyhow::Result<PathBuf> {
    let place = bench::target_directory()?.join("profiled");
    let (counts, profile, order) = (place.join("counts"), place.join("agent.profdata"), place.join("agent.order"));
    let counted = build(tools, &place.join("counted"), &format!("-Cprofile-generate={}", counts.display()))?;
    let age = |path: &Path| fs::metadata(path).and_then(|file| file.modified()).ok();
    if age(&order).min(age(&profile)) <= age(&counted) {
        let _ = fs::remove_dir_all(&counts);
        crate::say("taking a profile of an agent under load");
        bench::train(&counted)?;
        let files = fs::read_dir(&counts).context("the agent counted nothing")?;
        let files = files.map(|file| Ok(file?.path())).collect::<std::io::Result<Vec<_>>>()?;
        command::output(Command::new(&tools.profdata).args(["merge", "-o"]).arg(&profile).args(&files))?;
        let text = command::output(Command::new(&tools.profdata).args(["merge", "-text", "-o", "-"]).arg(&profile))?;
        crate::say("following an agent from its start");
        let traces = bench::trace(&counted)?;
        let mut names = executed(&text);
        let counted: BTreeSet<&str> = names.iter().copied().collect();
        // The standard library's and those in C and assembler.
        names.extend(traces.iter().flat_map(|trace| traced(trace)).collect::<BTreeSet<_>>().difference(&counted));
        fs::write(&order, names.into_iter().fold(String::new(), |all, name| all + name + "\n"))?;
    }
    // By its content, so that another profile is another build.
    let mut hash = DefaultHasher::new();
    for file in [&profile, &order] {
        hash.write(&fs::read(file).with_context(|| format!("cannot read {}", file.display()))?);
    }
    let named = place.join(format!("agent-{:016x}", hash.finish()));
    let (profile, order) = (copy(&profile, &named, "profdata")?, copy(&order, &named, "order")?);
    let flags = format!(
        "-Cprofile-use={} -Clink-arg=-Wl,--symbol-ordering-file={} -Clink-arg=-Wl,--no-warn-symbol-ordering",
        profile.display(),
        order.display()
    );
    build(tools, &place.join("built"), &flags)
}

fn copy(from: &Path, named: &Path, extension: &str) -> anyhow::Result<PathBuf> {
    let to = named.with_extension(extension);
    fs::copy(from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(to)
}

/// Builds the agent with these flags, which its build scripts do not get.
#[expect(clippy::disallowed_methods, reason = "cargo takes flags of the compiler from the environment")]
fn build(tools: &Tools, target: &Path, flags: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::var("RUSTFLAGS").unwrap_or_default();
    let mut build = command::cargo();
    build.args(["build", "--profile", "dist", "-p", AGENT, "--target", &tools.host, "--target-dir"]).arg(target);
    command::run(build.env("RUSTFLAGS", format!("{own} {flags}").trim()))?;
    Ok(target.join(&tools.host).join("dist").join(AGENT))
}

/// The functions in a profile that ran, those that ran most first.
fn executed(profile: &str) -> Vec<&str> {
    let functions = profile.split("\n\n").filter_map(|function| {
        let mut lines = function.lines().filter(|line| !line.starts_with(':'));
        let name = lines.find(|line| !line.starts_with('#'))?;
        let counts = lines.skip_while(|line| *line != "# Counter Values:").skip(1).take_while(|line| !line.starts_with('#'));
        let most = counts.filter_map(|count| count.parse::<u64>().ok()).max()?;
        // Of a function that other crates do not see the name begins with its unit.
        (most > 0).then(|| (std::cmp::Reverse(most), name.rsplit(';').next().unwrap_or(name)))
    });
    functions.collect::<BTreeSet<_>>().into_iter().map(|(_, name)| name).collect()
}

/// The functions of the agent that are in what callgrind wrote. It numbers names, and writes each once.
fn traced(trace: &str) -> BTreeSet<&str> {
    let (mut objects, mut functions): (HashMap<&str, &str>, HashMap<&str, &str>) = Default::default();
    let (mut found, mut is_own) = (BTreeSet::new(), false);
    for line in trace.lines() {
        let Some((kind, (number, name))) = line.split_once("=(").and_then(|(kind, rest)| Some((kind, rest.split_once(')')?)))
        else {
            continue;
        };
        let names = match kind {
            "ob" | "cob" => &mut objects,
            "fn" | "cfn" => &mut functions,
            _ => continue,
        };
        if let Some(name) = name.strip_prefix(' ') {
            names.insert(number, name);
        }
        let name = names.get(number).copied().unwrap_or_default();
        match kind {
            "ob" => is_own = name.rsplit('/').next() == Some(AGENT),
            // Behind a quote it says how deep in itself a function was called.
            "fn" if is_own => drop(found.insert(name.split('\'').next().unwrap_or(name))),
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ran_most_comes_first_and_what_did_not_run_not_at_all() {
        let function = |name: &str, counts: &[u64]| {
            let counts: String = counts.iter().map(|count| format!("{count}\n")).collect();
            format!("{name}\n# Func Hash:\n7\n# Num Counters:\n2\n# Counter Values:\n{counts}\n")
        };
        let head = "# IR level Instrumentation Flag\n:ir\n";
        let profile = [function("seldom", &[0, 1]), function("never", &[0, 0]), function("a.cgu.0;often", &[9, 3])].concat();
        assert_eq!(executed(&format!("{head}{profile}")), ["often", "seldom"]);
    }

    #[test]
    fn of_a_trace_the_agents_own_functions_are_taken() {
        let trace = "events: Ir\nob=(1) /x/libc.so.6\nfl=(1) malloc.c\nfn=(1) malloc\n5 7\n\nob=(2) /x/outrider-agent\nfl=(2) a.rs\n\
                     fn=(2) seal\n1 2\ncfn=(3) seal'2\ncalls=1 0\n2 3\ncob=(1)\ncfn=(1)\ncalls=1 0\n3 4\n\nfn=(3)\n1 2\n\nfn=(4) open\n1 2\n\
                     ob=(1)\nfn=(5) free\n1 1\n";
        assert_eq!(traced(trace).into_iter().collect::<Vec<_>>(), ["open", "seal"]);
    }
}
