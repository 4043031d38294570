//! Stores that ask a hook about each of their calls, around the stores that they stand for.

#![allow(dead_code, unused_imports, reason = "each test program uses a part of it")]

mod events;
mod gate;
mod hook;
mod leases;
mod outage;
mod sessions;
mod slow;
mod turns;
mod usage;

use std::sync::Arc;

use croft_front::Error;
use futures::FutureExt as _;

pub(crate) use self::gate::Gate;
pub(crate) use self::hook::{Call, Hook, Made};
pub(crate) use self::outage::{Outage, away};
pub(crate) use self::slow::Slow;

/// A store each call of which is as its hook will have it.
pub(crate) struct Hooked<S: ?Sized> {
    behind: Arc<S>,
    hook: Arc<dyn Hook>,
}

/// The store, whose calls are as this hook will have them.
pub(crate) fn hooked<S: ?Sized>(behind: Arc<S>, hook: impl Hook + 'static) -> Arc<Hooked<S>> {
    Arc::new(Hooked { behind, hook: Arc::new(hook) })
}

impl<S: ?Sized> Hooked<S> {
    async fn pass<T: Send>(
        &self,
        call: Call<'_>,
        made: impl Future<Output = Result<T, Error>> + Send,
    ) -> Result<T, Error> {
        let mut answer = None;
        let making = async {
            answer = Some(made.await?);
            Ok(())
        };
        self.hook.around(call, making.boxed()).await?;
        Ok(answer.expect("a call that succeeds was made"))
    }
}
