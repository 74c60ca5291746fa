//! Programs that nobody here wrote, as the README shows them: nginx behind one agent, curl through the other; load from wrk and h2load;
//! and Tomcat, which reads paths its own way.

#![expect(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use outrider_tests::{AgentOptions, Mesh, MeshOptions, Outcome, Process, allow, free_port, program, through_proxy};

/// What the README writes into `name` with a here-document.
fn from_readme(name: &str) -> String {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).expect("the README");
    let (_, rest) = readme.split_once(&format!("{name} <<'EOF'\n")).unwrap_or_else(|| panic!("the README does not write {name}"));
    rest.split_once("EOF\n").expect("the end of the document").0.to_owned()
}

/// A command of the operator's on this mesh.
fn outrider(mesh: &Mesh, arguments: &[&str]) -> Command {
    let mut command = Command::new(program("outrider"));
    command
        .args(arguments)
        .env("OUTRIDER_ADMIN_SOCKET", mesh.admin_socket())
        .env("XDG_STATE_HOME", mesh.dir.path())
        .env("NO_COLOR", "1");
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn curl(mesh: &Mesh, arguments: &[&str]) -> Output {
    let all = [&["run", "--service", "shop/web", "--", "curl", "-sS", "--max-time", "10"], arguments].concat();
    outrider(mesh, &all).output().expect("outrider runs")
}

/// The README's nginx on this port, with its directory.
fn nginx(mesh: &Mesh, port: u16) -> (PathBuf, PathBuf) {
    let prefix = mesh.dir.path().join("files");
    fs::create_dir_all(prefix.join("html")).expect("a directory");
    fs::write(prefix.join("html/index.html"), "hello from nginx\n").expect("a file");
    let conf = prefix.join("nginx.conf");
    let settings = from_readme("/tmp/files/nginx.conf").replace("127.0.0.1:8080", &format!("127.0.0.1:{port}"));
    assert!(settings.contains(&port.to_string()), "{settings}");
    fs::write(&conf, settings).expect("a file");
    (prefix, conf)
}

/// Waits until a plain GET to the program itself is answered.
async fn serving(port: u16) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while outrider_tests::get(([127, 0, 0, 1], port).into(), "/").await.is_err() {
        assert!(Instant::now() < deadline, "nothing serves on port {port}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn the_readme_is_true_for_nginx_and_curl() -> Outcome {
    let mesh = Mesh::start(MeshOptions::default()).await;
    let port = free_port();
    let (prefix, conf) = nginx(&mesh, port);
    let (prefix, conf) = (prefix.display().to_string(), conf.display().to_string());
    let listen = port.to_string();
    let run = ["run", "--service", "shop/files", "--port", &listen, "--", "nginx", "-p", &prefix, "-c", &conf, "-e", "stderr"];
    let mut files = Process::start("outrider run nginx", &mut outrider(&mesh, &run));
    files.wait_for("spiffe://mesh.internal/ns/shop/sa/files is in the mesh");
    serving(port).await;

    // `files.shop` means port 80, the service's only port is another: the README's way must work all the same.
    let refused = curl(&mesh, &["-i", "http://files.shop/"]);
    assert!(refused.status.success(), "curl without -f ends with 0: {refused:?}");
    assert!(text(&refused.stdout).starts_with("HTTP/1.1 403 Forbidden\r\n"), "{refused:?}");
    let failed = curl(&mesh, &["-f", "http://files.shop/"]);
    assert_eq!(failed.status.code(), Some(22), "the program's exit code is ours: {failed:?}");

    let decisions = outrider(&mesh, &["get", "decisions", "--denied"]).output()?;
    let table = text(&decisions.stdout);
    assert!(table.contains("shop/web") && table.contains("shop/files"), "{table}");
    let explained = outrider(&mesh, &["explain", "--from", "shop/web", "--to", "shop/files", "GET", "/"]).output()?;
    assert!(text(&explained.stdout).contains("denied"), "{explained:?}");

    mesh.apply(&from_readme("files.yaml"));
    let passed = curl(&mesh, &["http://files.shop/"]);
    assert_eq!(text(&passed.stdout), "hello from nginx\n", "{passed:?}");
    let denied = curl(&mesh, &["-o", "/dev/null", "-w", "%{http_code}", "-X", "DELETE", "http://files.shop/"]);
    assert_eq!(text(&denied.stdout), "403", "{denied:?}");

    // Ctrl-C ends the program, its agent and the command.
    files.signal("TERM");
    files.wait(Duration::from_secs(15));
    assert!(outrider_tests::get(([127, 0, 0, 1], port).into(), "/").await.is_err(), "nginx went with it");
    Ok(())
}

/// The number before `what`, or after `what`, in a report.
fn number_after(report: &str, what: &str) -> f64 {
    let (_, rest) = report.split_once(what).unwrap_or_else(|| panic!("no `{what}` in {report}"));
    let digits: String = rest.trim_start().chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    digits.parse().unwrap_or_else(|error| panic!("{error} after `{what}` in {report}"))
}

#[tokio::test]
async fn wrk_and_h2load_find_no_failure() -> Outcome {
    let mesh = Mesh::start(MeshOptions::default()).await;
    let port = free_port();
    let (prefix, conf) = nginx(&mesh, port);
    let mut start = Command::new("nginx");
    let _nginx = Process::start("nginx", start.arg("-p").arg(prefix).arg("-c").arg(conf).args(["-e", "stderr"]));
    serving(port).await;
    let services = vec![format!("shop/files:80/http=127.0.0.1:{port}")];
    let _files = mesh.agent("shop/files", AgentOptions { services, ..AgentOptions::default() }).await;
    let way_in = free_port();
    let upstreams = vec![format!("{way_in}=shop/files:80")];
    let web = mesh.agent("shop/web", AgentOptions { upstreams, ..AgentOptions::default() }).await;
    mesh.apply(&allow("files", "shop/files", "[shop/web]", "[GET]", "[\"/\"]"));
    let url = format!("http://127.0.0.1:{way_in}/");
    let named = "Host: files.shop";

    let wrk = Command::new("wrk").args(["-t1", "-c8", "-d1s", "-H", named, &url]).output()?;
    let report = text(&wrk.stdout);
    assert!(wrk.status.success() && number_after(&report, "Requests/sec:") > 10.0, "{report}");
    assert!(!report.contains("Socket errors") && !report.contains("Non-2xx"), "{report}");

    // h2load speaks HTTP/2 with prior knowledge to a plain-text address; nginx behind speaks HTTP/1.1.
    let h2load =
        Command::new("h2load").args(["-n", "500", "-c", "4", "-m", "8", "-H", ":authority: files.shop", &url]).output()?;
    let report = text(&h2load.stdout);
    assert!(report.contains("500 succeeded, 0 failed, 0 errored"), "{report}{}", text(&h2load.stderr));
    assert!(web.metric("outrider_agent_requests_total").await >= 500.0);
    Ok(())
}

/// Tomcat with files of its own: `/public/index.txt` and `/admin/secret.txt`.
fn tomcat(dir: &Path, port: u16) -> Process {
    const HOME: &str = "/usr/share/tomcat10";
    for (file, text) in [
        ("webapps/ROOT/public/index.txt", "public\n".to_owned()),
        ("webapps/ROOT/admin/secret.txt", "the secret\n".to_owned()),
        (
            "conf/server.xml",
            format!(
                "<Server port='-1'><Service name='Catalina'>\n<Connector port='{port}' address='127.0.0.1' protocol='HTTP/1.1'/>\n\
                 <Engine name='Catalina' defaultHost='localhost'><Host name='localhost' appBase='webapps'/></Engine></Service></Server>\n"
            ),
        ),
    ] {
        let path = dir.join(file);
        fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        fs::write(path, text).expect("a file");
    }
    for made in ["logs", "temp", "work"] {
        fs::create_dir_all(dir.join(made)).expect("a directory");
    }
    fs::copy(Path::new(HOME).join("etc/web.xml"), dir.join("conf/web.xml")).expect("Tomcat's own settings");
    let mut command = Command::new(Path::new(HOME).join("bin/catalina.sh"));
    command.arg("run").env("CATALINA_HOME", HOME).env("CATALINA_BASE", dir).env("CATALINA_TMPDIR", dir.join("temp"));
    Process::start("tomcat", &mut command)
}

#[tokio::test]
async fn tomcat_never_gets_a_denied_path_in_another_spelling() -> Outcome {
    let mesh = Mesh::start(MeshOptions::default()).await;
    let port = free_port();
    let _tomcat = tomcat(&mesh.dir.path().join("tomcat"), port);
    serving(port).await;
    let program = ([127, 0, 0, 1], port).into();
    // What makes it dangerous: Tomcat drops path parameters before it resolves dot segments.
    for path in ["/admin/secret.txt", "/admin;x=y/secret.txt", "/public/..;a=b/admin/secret.txt", "/%61dmin/secret.txt"] {
        assert_eq!(outrider_tests::get(program, path).await?.body_text(), "the secret\n", "{path}: the control without agents");
    }
    let services = vec![format!("shop/files:80/http={program}")];
    let _files = mesh.agent("shop/files", AgentOptions { services, ..AgentOptions::default() }).await;
    let web = mesh.agent("shop/web", AgentOptions::default()).await;
    mesh.apply(
        "apiVersion: outrider.dev/v1alpha1\nkind: ServicePolicy\nmetadata: { name: files, namespace: shop }\nspec:\n  \
         targetRefs: [{ kind: Service, name: files }]\n  authorization:\n    rules:\n      \
         - { name: all, action: Allow, from: [{ serviceAccounts: [shop/web] }] }\n      \
         - { name: admin, action: Deny, to: [{ paths: [/admin, '/admin/{rest=**}'] }] }\n",
    );
    let get = async |path: &str| through_proxy(web.outbound, "GET", &format!("http://files.shop{path}"), "").await;
    assert_eq!(get("/public/index.txt").await?.body_text(), "public\n");
    for path in [
        "/admin/secret.txt",
        "/admin;x=y/secret.txt",
        "/;x/admin/secret.txt",
        "/x;/../admin/secret.txt",
        "/;/admin;/secret.txt;a=b",
        "/public/..;a=b/admin/secret.txt",
        "/public/..;/admin/secret.txt",
        "/public/.;/..;/admin/secret.txt",
        "/public/%2e%2e;a=b/admin/secret.txt",
        "/public/../admin/secret.txt",
        "//admin/secret.txt",
        "/%61dmin/secret.txt",
        "/admin%2fsecret.txt",
        "/admin%5csecret.txt",
        "/admin\\secret.txt",
        "/public/%252e%252e/admin/secret.txt",
        "/admin/%2e/secret.txt",
        "/admin%3bx=y/secret.txt",
    ] {
        let answer = get(path).await?;
        assert!(answer.status == 403 || answer.status == 400 || answer.status == 404, "{path}: {}", answer.status);
        assert!(!answer.body_text().contains("secret"), "{path}: {}", answer.body_text());
    }
    Ok(())
}
