//! The worker: runs the agents of one tenant, for the front.

use std::process::ExitCode;

use croft_serve::tls::TlsFiles;
use croft_serve::{Program, grpc, health};
use croft_worker::{Args, RuntimeServer};
use tonic::service::Routes;

fn main() -> ExitCode {
    croft_serve::run(async |args: Args| {
        let tls = if args.insecure { None } else { Some(TlsFiles::read(&args.tls)?.server()) };
        let program = Program::start("croft-worker", &args.serve).await?;
        let serving = program.readiness.check("grpc");
        let (providers, keys) = args.providers()?;
        keys.spawn(&program.tasks);
        let runtime = RuntimeServer::new(args.options()?, providers, program.tasks.clone());
        runtime.register(&program.metrics)?;

        let health = health::service(&program.readiness, &program.tasks, &["croft.v1.RuntimeService"]).await;
        let routes = Routes::new(runtime.service()).add_service(health);
        let listener = grpc::bind(args.grpc_addr, "--grpc-addr (CROFT_GRPC_ADDR)").await?;
        let grpc_addr = listener.local_addr()?;
        grpc::serve("runtime-grpc", listener, tls, routes, croft_proto::METHODS, &program.tasks, &program.metrics)?;
        serving.ready();
        tracing::info!(%grpc_addr, tenant = args.tenant, insecure = args.insecure, "taking calls");
        program.run_until_shutdown().await
    })
}
