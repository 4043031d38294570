//! What every program of Croft does alike: read its config, log and trace, count, say whether it is ready, speak mutual
//! TLS, own its tasks, and stop in order. A `main` is [`run`] over a [`Program`].

pub mod config;
pub mod connections;
pub mod grpc;
pub mod health;
pub mod http;
pub mod log;
pub mod metrics;
pub mod program;
pub mod readiness;
pub mod settings;
pub mod shutdown;
pub mod tasks;
pub mod tls;
pub mod trace;

pub use config::{Config, Mistakes, ServeArgs, TlsArgs};
pub use metrics::Metrics;
pub use program::{Program, run};
pub use readiness::{Check, Readiness};
pub use tasks::Tasks;
