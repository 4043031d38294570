//! How turns begin and end, with a hook.

use async_trait::async_trait;
use croft_front::Error;
use croft_front::events::log::Append;
use croft_front::turn::store::{Begin, Begun, Ended, TurnStore};

use super::{Call, Hooked};

#[async_trait]
impl TurnStore for Hooked<dyn TurnStore> {
    async fn begin(&self, begin: Begin) -> Result<Begun, Error> {
        self.pass(Call::Begin, self.behind.begin(begin)).await
    }

    async fn end(&self, last: Append) -> Result<Ended, Error> {
        self.pass(Call::End(&last), self.behind.end(last.clone())).await
    }
}
