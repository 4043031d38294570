//! A whole program, from its arguments to its exit code. Run with `CROFT_TEST_PROGRAM` set, this file is that program;
//! run without, it starts itself so and looks on from outside.

#![expect(clippy::unwrap_used, reason = "a test may")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::time::Duration;

use croft_serve::tls::TlsFiles;
use croft_serve::{Config, Program, ServeArgs, TlsArgs};
use tokio::time::Instant;

const ROLE: &str = "CROFT_TEST_PROGRAM";

/// Longer than anything here takes.
const WAIT_MAX: Duration = Duration::from_secs(90);

/// What the program under test can be told.
#[derive(clap::Parser)]
struct Args {
    #[command(flatten)]
    serve: ServeArgs,
    #[command(flatten)]
    tls: TlsArgs,
    #[arg(long, env = "CROFT_SESSIONS_MAX", default_value_t = 1)]
    sessions_max: u32,
    /// It makes its parts when this file is gone
    #[arg(long)]
    start_behind: Option<PathBuf>,
    /// Work that has begun ends when this file is gone
    #[arg(long)]
    busy_while: Option<PathBuf>,
    /// A vital task fails at once
    #[arg(long)]
    fail: bool,
    /// A task panics at once
    #[arg(long)]
    panic: bool,
    /// Read the TLS files
    #[arg(long)]
    with_tls: bool,
}

impl Config for Args {
    fn mistakes(&self) -> Vec<String> {
        let none = self.sessions_max == 0;
        none.then(|| "--sessions-max (CROFT_SESSIONS_MAX) must be at least 1.".to_owned()).into_iter().collect()
    }
}

async fn program(args: Args) -> anyhow::Result<()> {
    if args.with_tls {
        TlsFiles::read(&args.tls)?;
    }
    let program = Program::start("croft-test", &args.serve).await?;
    gone(args.start_behind.as_ref()).await;
    if args.fail {
        program.tasks.spawn_vital("server", async { anyhow::bail!("on purpose") });
    }
    if args.panic {
        drop(program.tasks.spawn("clumsy", async { panic!("on purpose") }));
    }
    let (check, stopping) = (program.readiness.check("work"), program.tasks.stopping());
    drop(program.tasks.spawn("work", async move {
        check.ready();
        stopping.cancelled().await;
        gone(args.busy_while.as_ref()).await;
    }));
    program.run_until_shutdown().await
}

async fn gone(file: Option<&PathBuf>) {
    while file.is_some_and(|file| file.exists()) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn main() -> ExitCode {
    if std::env::var_os(ROLE).is_some() {
        return croft_serve::run(program);
    }
    let tests: [(&str, fn()); 10] = [
        ("mistakes_end_in_2_with_a_sentence_each", mistakes_end_in_2_with_a_sentence_each),
        ("unusable_tls_files_end_in_2_too", unusable_tls_files_end_in_2_too),
        ("a_taken_address_is_named_with_its_flag", a_taken_address_is_named_with_its_flag),
        ("pages_tell_how_it_is", pages_tell_how_it_is),
        ("it_is_not_ready_before_its_parts_are_there", it_is_not_ready_before_its_parts_are_there),
        ("a_signal_drains_what_has_begun", a_signal_drains_what_has_begun),
        ("the_grace_has_an_end", the_grace_has_an_end),
        ("a_second_signal_ends_it_at_once", a_second_signal_ends_it_at_once),
        ("a_vital_tasks_end_is_the_programs", a_vital_tasks_end_is_the_programs),
        ("a_panic_is_a_log_line_and_a_count", a_panic_is_a_log_line_and_a_count),
    ];
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).unwrap_or_default();
    for (name, test) in tests.iter().filter(|(name, _)| name.contains(&filter)) {
        test();
        eprintln!("test {name} ... ok");
    }
    ExitCode::SUCCESS
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env_clear().env(ROLE, "1").args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A program that is up, with its address of metrics and probes.
struct Running {
    child: Child,
    stdout: std::thread::JoinHandle<Vec<String>>,
    addr: SocketAddr,
}

impl Running {
    fn start(args: &[&str]) -> Self {
        let mut child = command(args).arg("--metrics-addr=127.0.0.1:0").spawn().unwrap();
        let stdout = std::io::BufReader::new(child.stdout.take().unwrap());
        let (tell, told) = std::sync::mpsc::channel();
        let stdout = std::thread::spawn(move || {
            let lines = std::io::BufRead::lines(stdout).map(Result::unwrap);
            lines
                .inspect(|line| {
                    let line: serde_json::Value = serde_json::from_str(line).expect("a log line should be JSON");
                    if let Some(addr) = line["ops_addr"].as_str() {
                        tell.send(addr.parse().unwrap()).unwrap();
                    }
                })
                .collect()
        });
        let addr = told.recv_timeout(WAIT_MAX).expect("it should say where its pages are");
        Self { child, stdout, addr }
    }

    /// The status code and body of a page.
    fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(self.addr).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }

    fn wait_for(&self, path: &str, code: u16, body: &str) {
        let deadline = Instant::now() + WAIT_MAX;
        let expected = Some((code, body.to_owned()));
        while self.get(path) != expected {
            assert!(Instant::now() < deadline, "{path} is {:?} and not {expected:?}", self.get(path));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// The exit code and the messages it logged.
    fn end(mut self) -> (Option<i32>, Vec<serde_json::Value>) {
        let deadline = Instant::now() + WAIT_MAX;
        while self.child.try_wait().unwrap().is_none() {
            if Instant::now() > deadline {
                self.child.kill().unwrap();
                panic!("it does not end");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let lines = self.stdout.join().unwrap();
        let lines = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        (self.child.wait().unwrap().code(), lines)
    }
}

fn line<'a>(lines: &'a [serde_json::Value], message: &str) -> &'a serde_json::Value {
    lines.iter().find(|line| line["message"] == message).unwrap_or_else(|| panic!("no {message:?} in {lines:#?}"))
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn mistakes_end_in_2_with_a_sentence_each() {
    let Output { status, stdout, stderr } =
        command(&["--log=a=b=c"]).env("CROFT_SHUTDOWN_GRACE_MS", "soon").output().unwrap();
    assert_eq!((status.code(), text(&stdout)), (Some(2), ""));
    let told: Vec<&str> = text(&stderr).lines().collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].starts_with("--log (CROFT_LOG) is not usable"), "{told:?}");
    assert!(told[1].starts_with("--shutdown-grace-ms (CROFT_SHUTDOWN_GRACE_MS) is not usable: \"soon\""), "{told:?}");

    let Output { status, stderr, .. } = command(&[]).env("CROFT_SESSIONS_MAX", "0").output().unwrap();
    assert_eq!(status.code(), Some(2));
    assert_eq!(text(&stderr), "--sessions-max (CROFT_SESSIONS_MAX) must be at least 1.\n");
}

fn unusable_tls_files_end_in_2_too() {
    let Output { status, stderr, .. } = command(&["--with-tls", "--tls-key=/nowhere/tls.key"]).output().unwrap();
    assert_eq!(status.code(), Some(2));
    let sentence = "/nowhere/tls.key of --tls-key (CROFT_TLS_KEY) is not usable: No such file";
    assert!(text(&stderr).lines().any(|line| line.starts_with(sentence)), "{}", text(&stderr));
}

fn a_taken_address_is_named_with_its_flag() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    let Output { status, stdout, .. } = command(&[&format!("--metrics-addr={addr}")]).output().unwrap();
    assert_eq!(status.code(), Some(1));
    let line: serde_json::Value = serde_json::from_str(text(&stdout).trim()).unwrap();
    let told = line["error"].as_str().unwrap();
    let expected = format!("cannot listen on {addr}, as --metrics-addr (CROFT_METRICS_ADDR) asks: ");
    assert!(told.starts_with(&expected), "{told}");
}

fn pages_tell_how_it_is() {
    let running = Running::start(&[]);
    running.wait_for("/healthz", 200, "ok\n");
    running.wait_for("/readyz", 200, "ok\n");
    let (code, page) = running.get("/metrics").unwrap();
    assert_eq!(code, 200);
    assert!(page.contains("croft_build_info{program=\"croft-test\""), "{page}");
    assert!(page.contains("croft_tasks_running{task=\"work\"} 1"), "{page}");
    running.signal("TERM");
    assert_eq!(running.end().0, Some(0));
}

fn it_is_not_ready_before_its_parts_are_there() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let running = Running::start(&["--start-behind", file.path().to_str().unwrap()]);
    running.wait_for("/healthz", 200, "ok\n");
    assert_eq!(running.get("/readyz"), Some((503, "start: still starting\n".to_owned())));
    drop(file);
    running.wait_for("/readyz", 200, "ok\n");
    running.signal("TERM");
    assert_eq!(running.end().0, Some(0));
}

/// A program that is busy until the file is gone.
fn busy(args: &[&str]) -> (tempfile::NamedTempFile, Running) {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path: &Path = file.path();
    let running = Running::start(&[&["--busy-while", path.to_str().unwrap()], args].concat());
    running.wait_for("/readyz", 200, "ok\n");
    (file, running)
}

fn a_signal_drains_what_has_begun() {
    let (file, running) = busy(&[]);
    running.signal("TERM");
    running.wait_for("/readyz", 503, "shutdown: shutting down\n");
    running.wait_for("/healthz", 200, "ok\n");
    drop(file);
    let (code, lines) = running.end();
    assert_eq!(code, Some(0));
    assert_eq!(line(&lines, "stopped")["tasks_left"], 0);
}

fn the_grace_has_an_end() {
    let (_file, running) = busy(&["--shutdown-grace-ms=50"]);
    running.signal("INT");
    let (code, lines) = running.end();
    assert_eq!(code, Some(0));
    assert_eq!(line(&lines, "stopped")["tasks_left"], 1);
    let left = line(&lines, "tasks left at the end of the shutdown grace");
    assert!(left["tasks"].as_str().unwrap().contains("work"), "{left}");
}

fn a_second_signal_ends_it_at_once() {
    let (_file, running) = busy(&[]);
    running.signal("TERM");
    running.wait_for("/readyz", 503, "shutdown: shutting down\n");
    running.signal("TERM");
    let (code, lines) = running.end();
    assert_eq!(code, Some(143));
    line(&lines, "stopped at once by a second signal");
}

fn a_vital_tasks_end_is_the_programs() {
    let running = Running::start(&["--fail"]);
    let (code, lines) = running.end();
    assert_eq!(code, Some(1));
    assert_eq!(line(&lines, "task failed")["error"], "on purpose");
    assert_eq!(line(&lines, "failed")["error"], "a task that the program can't be without has ended");
}

fn a_panic_is_a_log_line_and_a_count() {
    let running = Running::start(&["--panic"]);
    let deadline = Instant::now() + WAIT_MAX;
    while !running.get("/metrics").unwrap().1.contains("croft_task_panics_total{task=\"clumsy\"} 1") {
        assert!(Instant::now() < deadline, "the panic is not counted");
        std::thread::sleep(Duration::from_millis(5));
    }
    running.signal("TERM");
    let (code, lines) = running.end();
    assert_eq!(code, Some(0));
    assert_eq!(line(&lines, "panicked")["panic"], "on purpose");
    assert_eq!(line(&lines, "task panicked")["task"], "clumsy");
}
