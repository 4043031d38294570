//! An operator under test.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use croft_e2e::bench::launch::{command, loopback, operator_kubeconfig};
use croft_e2e::bench::process::Program;
use croft_e2e::bench::stage::NAMESPACE;
use croft_e2e::programs::beside_tests;
use serde_json::Value;
use tokio::time::Instant;

use crate::{End, Scene};

pub(crate) struct Operator {
    /// By which it holds the Lease.
    pub(crate) identity: String,
    /// By which the API server's log tells it from another.
    pub(crate) credential: String,
    pub(crate) program: Program,
}

impl Operator {
    /// Starts one, and waits until it could lead.
    pub(crate) async fn start(scene: &mut Scene) -> Self {
        scene.operators += 1;
        let identity = format!("operator-{}", scene.operators);
        let kubeconfig = scene.plane.folder().join(format!("{identity}.kubeconfig"));
        let token = operator_kubeconfig(&scene.client, &scene.plane.kubeconfig(), &kubeconfig).await.unwrap();
        let ops = loopback(scene.ports.take().unwrap());
        let mut command = command(&beside_tests(&["croft-operator"]).unwrap(), "croft-operator");
        command.env("KUBECONFIG", kubeconfig).args([
            format!("--namespace={NAMESPACE}"),
            format!("--identity={identity}"),
            format!("--metrics-addr={ops}"),
            "--routes-addr=127.0.0.1:0".to_owned(),
            // There are no sessions, and no front.
            "--front-url=https://localhost:1".to_owned(),
        ]);
        let log = scene.plane.folder().join(format!("{identity}.log"));
        let mut program = Program::start(&identity, command, ops, &log).unwrap();
        program.ready().await.unwrap();
        Self { identity, credential: format!("JTI={}", id(&token)), program }
    }

    /// When it says that it leads.
    pub(crate) async fn leads(&mut self) -> Instant {
        self.program.until_scraped(|scrape| scrape.sum("croft_operator_leader", &[]) > 0.0).await.unwrap()
    }

    /// Says when it went.
    pub(crate) async fn goes(&mut self, end: End) -> Instant {
        match end {
            End::ToldTo => self.program.terminate().await.unwrap(),
            End::Killed => self.program.kill().unwrap(),
            End::StandsStill => self.program.pause().await.unwrap(),
        }
    }
}

/// A token's own: <https://www.rfc-editor.org/rfc/rfc7519#section-4.1.7>
fn id(token: &str) -> String {
    let claims = token.split('.').nth(1).expect("a token has three parts");
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
    claims["jti"].as_str().expect("it has an id").to_owned()
}
