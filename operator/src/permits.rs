//! Which tenants may have their workers exchanged for the platform's sake, so that workers which fail at their start take the place of
//! those of a few tenants and not of all. Plain data: who is told, and what is done about it, is [`crate::rollouts`]'.
//!
//! A permit is held until the workers are exchanged, and kept by those that were served and whose new workers never run: they prove that the
//! template is bad. The next template goes to them first, as they ask for no further permit.

use std::collections::{BTreeMap, HashMap};

/// So many may be under way however few tenants there are.
const LEAST: usize = 10;

/// How many of `tenants` may be under way at a time: so many percent, rounded up, and [`LEAST`] at least.
pub(crate) fn most(tenants: usize, percent: u8) -> usize {
    (tenants * usize::from(percent)).div_ceil(100).max(LEAST)
}

/// Who holds a permit and who waits for one, in the order in which they came. Neither is ever more than there are tenants.
#[derive(Debug, Default)]
pub(crate) struct Permits {
    holders: HashMap<String, Holder>,
    queue: BTreeMap<u64, String>,
    /// Where a tenant stands in `queue`.
    places: HashMap<String, u64>,
    next_place: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Holder {
    /// The new template is in the cluster.
    pub(crate) is_begun: bool,
    /// It had workers before, and none were being exchanged. Of one that had none it says nothing of the template that those of the new one
    /// don't run either.
    pub(crate) was_served: bool,
}

impl Permits {
    /// Asks for a permit, of which there are `most`. Whoever holds one has it; nobody gets one before those who came earlier and still wait.
    /// Whoever gets none waits from then on.
    pub(crate) fn ask(&mut self, tenant: &str, is_served: bool, most: usize) -> Option<Holder> {
        if let Some(holder) = self.holders.get_mut(tenant) {
            holder.was_served |= is_served;
            return Some(*holder);
        }
        let next = self.next_place;
        let place = *self.places.entry(tenant.to_owned()).or_insert(next);
        if place == next {
            self.next_place += 1;
            self.queue.insert(place, tenant.to_owned());
        }
        if !self.queue.keys().take(self.free(most)).any(|first| *first == place) {
            return None;
        }
        self.step_back(tenant);
        let holder = Holder { is_begun: false, was_served: is_served };
        self.holders.insert(tenant.to_owned(), holder);
        Some(holder)
    }

    /// Notes of a tenant's workers that they are being exchanged with a permit, whoever gave it.
    pub(crate) fn note_under_way(&mut self, tenant: &str) {
        self.step_back(tenant);
        let holder = self.holders.entry(tenant.to_owned()).or_insert(Holder { is_begun: true, was_served: true });
        holder.is_begun = true;
    }

    /// Notes that the template for which a tenant holds a permit is in the cluster.
    pub(crate) fn note_begun(&mut self, tenant: &str) {
        if let Some(holder) = self.holders.get_mut(tenant) {
            holder.is_begun = true;
        }
    }

    /// Takes a tenant out that has nothing to exchange, or whose workers are exchanged. Says whether it held a permit.
    pub(crate) fn settle(&mut self, tenant: &str) -> bool {
        self.step_back(tenant);
        self.holders.remove(tenant).is_some()
    }

    /// Takes a tenant out that can't go on for now: it asks anew later, behind those who wait by then. One whose new workers are on their way
    /// stays.
    pub(crate) fn give_up(&mut self, tenant: &str) {
        self.step_back(tenant);
        if self.holders.get(tenant).is_some_and(|holder| !holder.is_begun) {
            self.holders.remove(tenant);
        }
    }

    /// Whom a permit waits for: they have but to ask.
    pub(crate) fn first(&self, most: usize) -> impl Iterator<Item = &String> {
        self.queue.values().take(self.free(most))
    }

    pub(crate) fn holder(&self, tenant: &str) -> Option<Holder> {
        self.holders.get(tenant).copied()
    }

    pub(crate) fn under_way(&self) -> usize {
        self.holders.len()
    }

    pub(crate) fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// None while more are under way than may be, as when those of a leader before were found, or tenants have gone.
    fn free(&self, most: usize) -> usize {
        most.saturating_sub(self.holders.len())
    }

    /// Waits no more.
    pub(crate) fn step_back(&mut self, tenant: &str) {
        if let Some(place) = self.places.remove(tenant) {
            self.queue.remove(&place);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet, HashSet};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn five_in_a_hundred_are_under_way_and_ten_at_least() {
        assert_eq!([0, 1, 200, 201, 1_000, 10_001].map(|tenants| most(tenants, 5)), [10, 10, 10, 11, 50, 501]);
        assert_eq!(most(300, 100), 300);
    }

    #[test]
    fn nobody_overtakes_who_waits_and_who_steps_back_keeps_nobody() {
        let mut permits = Permits::default();
        assert!(permits.ask("heron", true, 1).is_some());
        assert!(["egret", "stork", "crane"].iter().all(|tenant| permits.ask(tenant, true, 1).is_none()));
        assert!(permits.first(1).next().is_none());
        assert!(permits.settle("heron"));
        assert_eq!(permits.first(1).collect::<Vec<_>>(), ["egret"]);
        assert!(permits.ask("crane", true, 1).is_none() && permits.ask("stork", true, 1).is_none());
        permits.give_up("egret");
        assert!(permits.ask("crane", true, 1).is_none(), "the stork came before");
        assert!(permits.ask("stork", true, 1).is_some());
        assert!(permits.ask("egret", true, 2).is_none(), "it comes behind the crane now");
        assert!(permits.ask("crane", true, 2).is_some());
        assert_eq!((permits.under_way(), permits.waiting()), (2, 1));
    }

    #[test]
    fn who_is_found_under_way_counts_and_the_next_template_is_theirs_first() {
        let mut permits = Permits::default();
        permits.note_under_way("heron");
        permits.note_under_way("egret");
        assert!(permits.ask("stork", true, 2).is_none());
        assert_eq!(permits.ask("heron", false, 2), Some(Holder { is_begun: true, was_served: true }));
        permits.give_up("heron");
        assert_eq!(permits.under_way(), 2, "its new workers are on their way");
        assert!(permits.settle("egret") && !permits.settle("egret"));
        assert!(permits.ask("stork", false, 2).is_some());
        permits.give_up("stork");
        assert_eq!(permits.under_way(), 1, "it has not begun");
    }

    /// A fleet whose operator gives permits: what is wanted of each, what it has, and whether that runs.
    #[derive(Debug, Default)]
    struct Fleet {
        permits: Permits,
        wanted: u32,
        /// Templates whose workers never run.
        bad: HashSet<u32>,
        /// The template of each tenant.
        has: BTreeMap<String, u32>,
        /// Tenants whose workers never run, by their own doing.
        broken: HashSet<String>,
        /// Those that were served as they got their template.
        were_served: HashSet<String>,
    }

    impl Fleet {
        fn most(&self) -> usize {
            most(self.has.len(), 5)
        }

        fn is_served(&self, tenant: &str) -> bool {
            !self.bad.contains(&self.has[tenant]) && !self.broken.contains(tenant)
        }

        /// A pass over one tenant.
        fn pass(&mut self, tenant: &str) {
            let Some(has) = self.has.get(tenant).copied() else { return };
            if has == self.wanted {
                let is_stalled = self.permits.holder(tenant).is_some_and(|holder| !holder.was_served);
                if self.is_served(tenant) || is_stalled {
                    self.permits.settle(tenant);
                }
            } else if let Some(holder) = self.permits.ask(tenant, self.is_served(tenant), self.most()) {
                self.has.insert(tenant.to_owned(), self.wanted);
                self.permits.note_begun(tenant);
                if holder.was_served {
                    self.were_served.insert(tenant.to_owned());
                } else {
                    self.were_served.remove(tenant);
                }
            }
        }

        /// Whose template runs or not, and who was served before, is known from the cluster alone.
        fn restart(&mut self) {
            self.permits = Permits::default();
            for tenant in self.failing() {
                self.permits.note_under_way(&tenant);
            }
        }

        /// Those that were served and have a bad template.
        fn failing(&self) -> Vec<String> {
            let has_bad =
                |tenant: &&String| self.bad.contains(&self.has[*tenant]) && self.were_served.contains(*tenant);
            self.has.keys().filter(has_bad).cloned().collect()
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Pass(usize),
        FailedPass(usize),
        Roll { is_bad: bool },
        Break(usize),
        Mend(usize),
        Restart,
        Delete(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            20 => any::<usize>().prop_map(Step::Pass),
            3 => any::<usize>().prop_map(Step::FailedPass),
            1 => any::<bool>().prop_map(|is_bad| Step::Roll { is_bad }),
            2 => any::<usize>().prop_map(Step::Break),
            1 => any::<usize>().prop_map(Step::Mend),
            1 => Just(Step::Restart),
            1 => any::<usize>().prop_map(Step::Delete),
        ]
    }

    fn name(at: usize, of: usize) -> String {
        format!("tenant-{}", at % of)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn never_more_are_under_way_than_may_be_and_a_mended_template_reaches_all(
            tenants in 1_usize..300,
            steps in prop::collection::vec(step(), 0..800),
        ) {
            let mut fleet = Fleet { has: (0..tenants).map(|at| (name(at, tenants), 0)).collect(), ..Fleet::default() };
            let bound = fleet.most();
            for step in steps {
                match step {
                    Step::Pass(at) => fleet.pass(&name(at, tenants)),
                    Step::FailedPass(at) => fleet.permits.give_up(&name(at, tenants)),
                    Step::Roll { is_bad } => {
                        fleet.wanted += 1;
                        if is_bad {
                            fleet.bad.insert(fleet.wanted);
                        }
                    }
                    // One that is being exchanged may fail by its own doing too; what becomes of its permit then is for its owner.
                    Step::Break(at) if fleet.permits.holder(&name(at, tenants)).is_some() => {}
                    Step::Break(at) => drop(fleet.broken.insert(name(at, tenants))),
                    Step::Mend(at) => drop(fleet.broken.remove(&name(at, tenants))),
                    Step::Restart => fleet.restart(),
                    Step::Delete(at) => {
                        fleet.permits.settle(&name(at, tenants));
                        fleet.has.remove(&name(at, tenants));
                    }
                }
                prop_assert!(fleet.permits.under_way() <= bound);
                prop_assert!(fleet.failing().len() <= bound, "a bad template is where no permit is held");
                prop_assert!(fleet.permits.waiting() <= fleet.has.len());
            }
            // Whoever asks last in each round has its turn too, and those who failed, or never run, hold nobody up.
            fleet.wanted += 1;
            let names: Vec<_> = fleet.has.keys().cloned().collect();
            for _ in 0..2 * names.len() + 2 {
                for tenant in &names {
                    fleet.pass(tenant);
                }
                if fleet.permits.under_way() + fleet.permits.waiting() == 0 {
                    break;
                }
            }
            prop_assert!(fleet.has.values().all(|has| *has == fleet.wanted));
            prop_assert_eq!((fleet.permits.under_way(), fleet.permits.waiting()), (0, 0));
        }

        #[test]
        fn whoever_waits_is_served_before_those_who_come_later(tenants in 12_usize..60, least in 1_usize..5) {
            let mut permits = Permits::default();
            let all: Vec<_> = (0..tenants).map(|at| name(at, tenants)).collect();
            let mut served = Vec::new();
            for tenant in &all {
                if permits.ask(tenant, true, least).is_some() {
                    served.push(tenant.clone());
                }
            }
            // The last asks first each time.
            while served.len() < all.len() {
                prop_assert!(permits.settle(&served[served.len() - least]));
                let rest: BTreeSet<_> = all.iter().filter(|tenant| !served.contains(tenant)).collect();
                let got: Vec<_> =
                    rest.into_iter().rev().filter(|tenant| permits.ask(tenant, true, least).is_some()).collect();
                prop_assert_eq!(got.len(), 1);
                prop_assert_eq!(got[0], &all[served.len()]);
                served.push(got[0].clone());
            }
        }
    }
}
