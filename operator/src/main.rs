//! Reads the arguments, finds the cluster, starts the operator, and runs it until it is told to stop.

use std::process::ExitCode;

use croft_operator::config::Args;
use croft_operator::operator;
use croft_serve::{Program, run};

fn main() -> ExitCode {
    run(async |args: Args| {
        let kube_config = operator::kube_config().await?;
        let program = Program::start("croft-operator", &args.serve).await?;
        operator::start(&args, kube_config, &program).await?;
        program.run_until_shutdown().await
    })
}
