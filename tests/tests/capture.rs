//! Transparent capture, in network namespaces: programs that know nothing of the mesh, rules of the real kernel, curl, dig and nginx.

#![expect(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use outrider_tests::{Mesh, Outcome, Process, Space, Spaces, allow, program};

/// Group the agents run as: their connections are not captured.
const GROUP: u32 = 15100;

/// An agent in a machine of its own.
struct Agent {
    process: Process,
    log: PathBuf,
}

async fn agent(mesh: &Mesh, space: &Space, identity: &str, more: &[&str]) -> Agent {
    let backed: Vec<&str> = more.iter().filter_map(|word| word.split_once(":80/")).map(|(service, _)| service).collect();
    let token = mesh.token(identity, &backed).await;
    let state = mesh.dir.path().join("agents").join(identity.replace('/', "-"));
    let log = state.with_extension("log");
    let mut command = space.command("setpriv");
    command.args(["--regid", &GROUP.to_string(), "--clear-groups"]).arg(program("outrider-agent"));
    command.args(["--control-plane", &mesh.address.to_string(), "--token", &token, "--workers", "1", "--capture", "both"]);
    command.args(["--mesh", &format!("{}:15108", space.v4), "--state-dir", &state.display().to_string()]);
    command.args(["--access-log", &log.display().to_string()]).args(more);
    let process = Process::start(&format!("agent of {identity}"), &mut command);
    let agent = Agent { process, log };
    let deadline = Instant::now() + Duration::from_secs(20);
    while space.curl("http://127.0.0.1:15120/readyz").1 != "ready\n200" {
        assert!(Instant::now() < deadline, "the agent is not ready:\n{}", agent.process.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    agent
}

impl Agent {
    /// Waits until the access log has a line with these words.
    async fn logged(&self, words: &[&str]) -> String {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let text = std::fs::read_to_string(&self.log).unwrap_or_default();
            if let Some(line) = text.lines().find(|line| words.iter().all(|word| line.contains(word))) {
                return line.to_owned();
            }
            assert!(Instant::now() < deadline, "no line with {words:?} in:\n{text}\n{}", self.process.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// `outrider-agent capture …` inside: exit code and everything it said.
fn capture(space: &Space, words: &str) -> (i32, String) {
    let output: Output = space
        .command(program("outrider-agent"))
        .arg("capture")
        .args(words.split_whitespace())
        .output()
        .expect("outrider-agent runs");
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&said).into_owned())
}

fn install(space: &Space, more: &str) {
    let (code, said) = capture(space, format!("install --agent-gid {GROUP} {more}").trim());
    assert_eq!(code, 0, "{said}");
}

/// nginx inside, listening on these ports of both families, and what it served.
struct Nginx {
    _process: Process,
    served: PathBuf,
}

fn nginx(space: &Space, dir: &Path, ports: &[u16]) -> Nginx {
    let dir = dir.join("nginx");
    std::fs::create_dir_all(&dir).expect("a directory");
    let listen: String = ports.iter().map(|port| format!("listen 0.0.0.0:{port}; listen [::]:{port};")).collect();
    let config = format!(
        "daemon off; master_process off; pid nginx.pid; error_log stderr;\nevents {{}}\nhttp {{\n  \
         log_format seen '$request_uri as $http_x_forwarded_client_cert'; access_log served.log seen;\n  \
         client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;\n  \
         server {{ {listen} location / {{ return 200 'served '; }} }}\n}}\n"
    );
    std::fs::write(dir.join("nginx.conf"), config).expect("a file");
    let dir_text = dir.display().to_string();
    let mut command = space.command("nginx");
    command.args(["-p", &dir_text, "-c", &format!("{dir_text}/nginx.conf"), "-e", "stderr"]);
    let nginx = Nginx { _process: Process::start("nginx", &mut command), served: dir.join("served.log") };
    let port = ports.first().expect("a port");
    let deadline = Instant::now() + Duration::from_secs(10);
    while space.curl(&format!("http://127.0.0.1:{port}/ready")).1 != "served 200" {
        assert!(Instant::now() < deadline, "no nginx:\n{}", nginx._process.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    std::fs::write(&nginx.served, "").expect("a file");
    nginx
}

impl Nginx {
    /// What it served since the last call.
    fn served(&self) -> String {
        let text = std::fs::read_to_string(&self.served).unwrap_or_default();
        std::fs::write(&self.served, "").expect("a file");
        text
    }
}

/// Two machines in a mesh: `shop/web`, and `shop/orders` with nginx at port 8080.
struct Shop {
    web: Agent,
    orders: Agent,
    nginx: Nginx,
    mesh: Mesh,
    spaces: Spaces,
}

impl Shop {
    /// None where there are no network namespaces.
    async fn open(web: &[&str]) -> Option<Self> {
        let spaces = Spaces::make(2)?;
        let mesh = Mesh::start_in(&spaces.hub).await;
        let [a, b] = spaces.machines.as_slice() else { panic!("two machines") };
        let nginx = nginx(b, mesh.dir.path(), &[8080]);
        let orders = agent(&mesh, b, "shop/orders", &["--service", "shop/orders:80/http=127.0.0.1:8080"]).await;
        let web = agent(&mesh, a, "shop/web", web).await;
        install(b, "");
        Some(Self { web, orders, nginx, mesh, spaces })
    }

    fn a(&self) -> &Space {
        self.spaces.machines.first().expect("two machines")
    }

    fn b(&self) -> &Space {
        self.spaces.machines.last().expect("two machines")
    }
}

#[tokio::test]
async fn a_captured_program_calls_by_name_over_both_families_and_each_call_is_decided() -> Outcome {
    let Some(shop) = Shop::open(&[]).await else { return Ok(()) };
    let a = shop.a();
    assert_ne!(a.curl("http://orders.shop/").0, 0, "before the rules are there, nobody knows the name");
    install(a, "");
    assert_eq!(a.curl("http://orders.shop/").1, "403", "no rule allows it");
    shop.mesh.apply(&allow("all", "shop/orders", "[shop/web]", "[GET]", "[/ok]"));
    for url in ["orders.shop", "orders.shop.mesh.internal", "orders.shop.svc", "orders.shop.svc.cluster.local", "orders.shop:80"]
    {
        for family in ["-4", "-6"] {
            assert_eq!(a.curl(&format!("{family} http://{url}/ok")), (0, "served 200".to_owned()), "{url} {family}");
            assert_eq!(a.curl(&format!("{family} http://{url}/no")).1, "403", "{url} {family}");
        }
    }
    let served = shop.nginx.served();
    assert_eq!(served.lines().filter(|line| line.contains("/ok as ") && line.contains("ns/shop/sa/web")).count(), 10, "{served}");
    assert!(!served.contains("/no"), "{served}");

    // An IPv4 address in IPv6 clothes goes out as IPv4, and is the same service.
    let address = String::from_utf8_lossy(&a.run("dig +short orders.shop A").stdout).trim().to_owned();
    let (code, said) = a.curl(&format!("--connect-to ::[::ffff:{address}]:80 http://orders.shop/ok"));
    assert_eq!((code, said.as_str()), (0, "served 200"), "::ffff:{address}");

    // No such service, no such port, and a virtual address that nobody was given.
    assert_eq!(a.curl("http://nobody.shop/").0, 6, "the name does not resolve");
    assert_ne!(a.curl("http://orders.shop:81/ok").0, 0);
    shop.web.logged(&["unknown_service", "port 81"]).await;
    assert_ne!(a.curl("http://240.255.255.1/ok").0, 0);
    shop.web.logged(&["unknown_service", "240.255.255.1"]).await;

    // The agent gone, the rules still there: nothing leaves.
    shop.web.process.signal("KILL");
    assert_ne!(a.curl("http://orders.shop/ok").0, 0);
    assert_ne!(a.curl(&format!("http://{}:15110/", shop.spaces.hub.v4)).0, 0);
    Ok(())
}

#[tokio::test]
async fn from_outside_a_program_is_reached_through_its_agent_only() -> Outcome {
    let Some(shop) = Shop::open(&[]).await else { return Ok(()) };
    let (outside, b) = (&shop.spaces.hub, shop.b());
    let urls = [format!("http://{}:8080", b.v4), format!("http://[{}]:8080", b.v6)];
    // As anybody, from elsewhere, also from beside another agent and as the user that its rules let alone.
    install(shop.a(), &format!("--exempt-outbound-net {}/32", b.v4));
    for url in &urls {
        assert_eq!(outside.curl(&format!("{url}/healthz")).1, "403", "{url}");
    }
    assert_eq!(shop.a().curl(&format!("{}/healthz", urls[0])).1, "403");
    let as_agent = format!("setpriv --regid {GROUP} --clear-groups");
    for url in &urls {
        assert_eq!(shop.a().curl_as(&as_agent, &format!("{url}/healthz")).1, "403", "{url}");
    }
    shop.orders.logged(&["plaintext_refused"]).await;

    shop.mesh.apply(
        "apiVersion: outrider.dev/v1alpha1\nkind: ServicePolicy\nmetadata: { name: orders, namespace: shop }\nspec:\n  \
         targetRefs: [{ kind: Service, name: orders }]\n  mtls: { mode: Permissive }\n  authorization:\n    rules:\n      \
         - { name: probes, action: Allow, from: [{ anonymous: true }], to: [{ methods: [GET], paths: [/healthz] }] }\n",
    );
    for url in &urls {
        assert_eq!(outside.curl(&format!("{url}/healthz")), (0, "served 200".to_owned()), "{url}");
        assert_eq!(outside.curl(&format!("{url}/orders")).1, "403", "{url}");
    }
    let served = shop.nginx.served();
    assert_eq!(served, "/healthz as -\n/healthz as -\n", "as nobody, and nothing else");

    // Ports of nothing that the agent backs, and the agent's own ports.
    let _other = nginx(b, &shop.mesh.dir.path().join("other"), &[9999]);
    assert_ne!(outside.curl(&format!("http://{}:9999/", b.v4)).0, 0);
    shop.orders.logged(&["unknown_service", "port 9999"]).await;
    for host in [b.v4.clone(), format!("[{}]", b.v6)] {
        assert_ne!(outside.curl(&format!("http://{host}:15106/healthz")).0, 0);
        for port in [15101, 15102, 15120, 15153] {
            assert_ne!(outside.curl(&format!("http://{host}:{port}/")).0, 0, "{host}:{port}");
        }
    }
    shop.orders.logged(&["not_redirected"]).await;
    assert_ne!(b.curl("http://127.0.0.1:15102/").0, 0, "straight to the outbound side");
    assert_eq!(shop.nginx.served(), "");
    Ok(())
}

#[tokio::test]
async fn what_is_outside_of_the_mesh_is_reached_where_a_setting_says_so_and_nowhere_else() -> Outcome {
    let Some(shop) = Shop::open(&["--egress", "10.77.0.1:8003", "--egress", "[fd77::1]:8003"]).await else { return Ok(()) };
    let (a, hub) = (shop.a(), &shop.spaces.hub);
    let web = nginx(hub, &shop.mesh.dir.path().join("hub"), &[8001, 8002, 8003]);
    let url = |port: u16, family: u8| {
        if family == 4 { format!("http://{}:{port}/{port}", hub.v4) } else { format!("http://[{}]:{port}/{port}", hub.v6) }
    };
    install(a, "--exempt-uid 12345 --exempt-outbound-port 8002");
    let user = "setpriv --reuid 12345 --clear-groups";
    for family in [4, 6] {
        assert_ne!(a.curl(&url(8001, family)).0, 0, "over IPv{family}");
        assert_eq!(a.curl_as(user, &url(8001, family)).1, "served 200", "another user, over IPv{family}");
        assert_eq!(a.curl(&url(8002, family)).1, "served 200", "another port, over IPv{family}");
        assert_eq!(a.curl(&url(8003, family)).1, "served 200", "by way of the agent, over IPv{family}");
    }
    shop.web.logged(&["egress_denied", "10.77.0.1:8001"]).await;
    shop.web.logged(&["egress_denied", "[fd77::1]:8001"]).await;
    shop.web.logged(&["\"outside\":\"10.77.0.1:8003\""]).await;
    shop.web.logged(&["\"outside\":\"[fd77::1]:8003\""]).await;
    assert_eq!(web.served().lines().count(), 6);

    install(a, &format!("--exempt-outbound-net {}/32", hub.v4));
    assert_eq!(a.curl(&url(8001, 4)).1, "served 200");
    assert_ne!(a.curl(&url(8001, 6)).0, 0);

    // Only one user is captured.
    install(a, "--only-uid 12345");
    assert_eq!(a.curl(&url(8001, 4)).1, "served 200");
    assert_ne!(a.curl_as(user, &url(8001, 4)).0, 0);

    // Rules that forget the agent: what it opens comes back to it, once, and ends there.
    install(a, "--agent-gid 999");
    let (code, said) = capture(a, "install --agent-gid 999");
    assert_eq!(code, 0, "{said}");
    let began = Instant::now();
    assert_ne!(a.curl(&url(8003, 4)).0, 0);
    assert!(began.elapsed() < Duration::from_secs(5));
    shop.web.logged(&["capture_loop", "10.77.0.1:8003"]).await;
    let text = std::fs::read_to_string(&shop.web.log)?;
    assert_eq!(text.lines().filter(|line| line.contains("capture_loop")).count(), 1, "{text}");
    Ok(())
}

#[tokio::test]
async fn names_are_answered_over_udp_and_tcp_and_others_are_asked_only_where_a_setting_says_so() -> Outcome {
    let Some(shop) = Shop::open(&["--dns-forward", "example=10.77.0.1:5353"]).await else { return Ok(()) };
    let a = shop.a();
    install(a, "");
    let dig = |words: &str| {
        let output = a.run(&format!("dig +tries=1 +time=5 {words}"));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let first = dig("+short orders.shop A");
    assert!(first.starts_with("240."), "{first}");
    let v6 = dig("+short orders.shop AAAA");
    assert!(v6.starts_with("fd6f:7574:7269:"), "{v6}");
    // Whatever server is asked, over whichever family and transport.
    for server in ["", "@8.8.8.8", "@127.0.0.53", "@fd77::1", "@::1"] {
        for transport in ["+notcp", "+tcp"] {
            for name in ["orders.shop", "ORDERS.shop.svc.cluster.local", "orders.shop.mesh.internal"] {
                assert_eq!(dig(&format!("{server} {transport} +short {name} A")), first, "{server} {transport} {name}");
            }
        }
    }
    let status = |words: &str| {
        let text = dig(words);
        let status = text.split("status: ").nth(1).and_then(|rest| rest.split(',').next()).map(ToOwned::to_owned);
        status.unwrap_or(text)
    };
    for transport in ["+notcp", "+tcp"] {
        assert_eq!(status(&format!("{transport} nobody.shop A")), "NXDOMAIN");
        assert_eq!(status(&format!("{transport} orders.shop.cluster.local A")), "NXDOMAIN");
        assert_eq!(status(&format!("{transport} www.example.com A")), "REFUSED");
        assert_eq!(status(&format!("{transport} . NS")), "REFUSED");
        assert_eq!(status(&format!("{transport} orders.shop MX")), "NOERROR");
        assert_eq!(status(&format!("{transport} orders.shop -c CH A")), "REFUSED");
        assert_eq!(status(&format!("{transport} a.example A")), "SERVFAIL", "the server that may be asked is not there");
    }
    assert_eq!(status("+opcode=UPDATE orders.shop A"), "NOTIMP");
    let mut other = shop.spaces.hub.command("dnsmasq");
    other.args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--port=5353", "--pid-file="]);
    let other = Process::start("dnsmasq", other.arg("--address=/example/192.0.2.99"));
    let deadline = Instant::now() + Duration::from_secs(10);
    while status("a.example A") != "NOERROR" {
        assert!(Instant::now() < deadline, "no dnsmasq: {}", other.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for transport in ["+notcp", "+tcp"] {
        assert_eq!(dig(&format!("{transport} +short a.example A")).trim(), "192.0.2.99", "{transport}");
        assert_eq!(status(&format!("{transport} a.example.com A")), "REFUSED");
    }
    Ok(())
}

#[tokio::test]
async fn rules_are_installed_checked_and_removed_as_a_whole() -> Outcome {
    let Some(spaces) = Spaces::make(0) else { return Ok(()) };
    let hub = &spaces.hub;
    let flags = "--agent-uid 15100 --agent-gid 15100 --exempt-uid 7 --exempt-outbound-port 9000-9010 --exempt-outbound-port 22 \
                 --exempt-outbound-net 10.0.0.0/8 --exempt-outbound-net fd00::/8 --exempt-inbound-port 9090 --exempt-inbound-net 192.0.2.0/24";
    let verb = |verb: &str| capture(hub, &format!("{verb} {flags}"));
    let nft = |words: &str| {
        let output = hub.run(&format!("nft {words}"));
        assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let (code, said) = verb("check");
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("nothing is captured") && said.contains("capture install"), "{said}");
    for _ in 0..2 {
        assert_eq!(verb("install").0, 0);
        let (code, said) = verb("check");
        assert_eq!(code, 0, "{said}");
        assert_eq!(nft("list tables").trim(), "table inet outrider", "one table for both families, and nothing else");
    }
    let (code, said) = capture(hub, "check --agent-uid 15100");
    assert_eq!(code, 1, "other settings: {said}");
    assert!(said.contains("missing: ") && said.contains("foreign: "), "{said}");

    // A rule that somebody put before ours, and one that is gone.
    nft("insert rule inet outrider outbound meta skuid 5 return");
    let (code, said) = verb("check");
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("foreign: meta skuid 5 return") && said.contains("capture install"), "{said}");
    nft("flush chain inet outrider inbound");
    let (code, said) = verb("check");
    assert!(code == 1 && said.contains("redirect to :15106"), "{said}");
    assert_eq!((verb("install").0, verb("check").0), (0, 0));

    nft("add table ip nat");
    nft("add chain ip nat OUTPUT { type nat hook output priority -100 ; }");
    let (code, said) = verb("check");
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("`OUTPUT`") && said.contains("`ip nat`"), "{said}");

    let removed = capture(hub, "remove");
    assert_eq!(removed.0, 0, "{removed:?}");
    assert_eq!(nft("list tables").trim(), "table ip nat", "of others nothing is touched");
    assert_eq!(capture(hub, "remove").0, 0, "twice");

    // What is printed is what nft takes; what is wrong is not.
    let (code, text) = verb("print");
    assert_eq!(code, 0);
    let file = std::env::temp_dir().join(format!("{}.nft", hub.name));
    std::fs::write(&file, text)?;
    nft(&format!("-f {}", file.display()));
    assert_eq!(verb("check").0, 3, "the same rules");
    std::fs::remove_file(&file)?;

    let nobody = Command::new("setpriv")
        .args(["--reuid", "65534", "--clear-groups"])
        .args([program("outrider-agent")])
        .args(["capture", "check", "--agent-uid", "1"])
        .output()?;
    if nobody.status.code() != Some(126) && nobody.status.code() != Some(127) {
        assert_eq!(nobody.status.code(), Some(4), "{nobody:?}");
        assert!(String::from_utf8_lossy(&nobody.stderr).contains("as root"), "{nobody:?}");
    }
    Ok(())
}

#[test]
fn settings_of_the_rules_are_checked_before_anything_is_done() -> Outcome {
    let run = |words: &[&str]| {
        let output = Command::new(program("outrider-agent")).arg("capture").args(words).output().expect("outrider-agent runs");
        (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for verb in ["print", "install", "check"] {
        let (code, said) = run(&[verb]);
        assert!(code == 2 && said.contains("--agent-uid"), "a loop: {said}");
        for hostile in ["1 } ; flush ruleset", "80;", "\n", "-1", "http"] {
            for flag in ["--exempt-outbound-port", "--exempt-outbound-net", "--exempt-uid", "--dns-port"] {
                let (code, said) = run(&[verb, "--agent-uid", "1", &format!("{flag}={hostile}")]);
                assert!(code == 2 && said.contains(flag), "{flag} {hostile}: {said}");
            }
        }
    }
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("rules.yaml");
    std::fs::write(&file, "agent-uid: [15100]\nexempt-outbound-port: [22, 80-x]\n")?;
    let (code, said) = run(&["print", "--config", &file.display().to_string()]);
    assert!(code == 2 && said.contains("rules.yaml") && said.contains("80-x") && said.contains("line 2"), "{said}");
    std::fs::write(&file, "agent-uid: [15100]\nexempt-outbound-port: [22, 80-90]\n")?;
    let output =
        Command::new(program("outrider-agent")).args(["capture", "print", "--config", &file.display().to_string()]).output()?;
    assert!(String::from_utf8_lossy(&output.stdout).contains("22, 80-90"), "{output:?}");
    Ok(())
}
