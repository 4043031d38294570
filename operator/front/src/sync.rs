//! Locks. In tests they may be those of a model checker, which lets another thread go first at each of them, in all manner of
//! orders: see [`model`].

#[cfg(not(test))]
pub(crate) use std::sync::{Mutex, MutexGuard};

#[cfg(test)]
pub(crate) use self::model::{Mutex, MutexGuard};

/// Runs small worlds of threads many times, each time in another order. A thread that waits for ever fails the test.
#[cfg(test)]
pub(crate) mod model {
    use std::cell::Cell;
    use std::ops::{Deref, DerefMut};
    use std::sync::{LockResult, PoisonError};

    thread_local! {
        /// All threads of a model share the thread of its test.
        static IS_MODEL: Cell<bool> = const { Cell::new(false) };
    }

    /// Tries so many orders, half of them by chance and half with few and well-placed changes of thread.
    pub(crate) fn check(orders: usize, world: impl Fn() + Clone + Send + Sync + 'static) {
        IS_MODEL.set(true);
        shuttle::check_random(world.clone(), orders / 2);
        shuttle::check_pct(world, orders / 2, 3);
        IS_MODEL.set(false);
    }

    /// A lock of the standard library, or, when it is made within a model, of the model checker.
    #[derive(Debug)]
    pub(crate) enum Mutex<T> {
        Real(std::sync::Mutex<T>),
        Model(shuttle::sync::Mutex<T>),
    }

    pub(crate) enum MutexGuard<'lock, T> {
        Real(std::sync::MutexGuard<'lock, T>),
        Model(shuttle::sync::MutexGuard<'lock, T>),
    }

    impl<T> Mutex<T> {
        pub(crate) fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
            match self {
                Self::Real(lock) => guarded(lock.lock(), MutexGuard::Real),
                Self::Model(lock) => guarded(lock.lock(), MutexGuard::Model),
            }
        }
    }

    fn guarded<Inner, Outer>(locked: LockResult<Inner>, outer: impl Fn(Inner) -> Outer) -> LockResult<Outer> {
        match locked {
            Ok(inner) => Ok(outer(inner)),
            Err(poisoned) => Err(PoisonError::new(outer(poisoned.into_inner()))),
        }
    }

    impl<T: Default> Default for Mutex<T> {
        fn default() -> Self {
            if IS_MODEL.get() {
                Self::Model(shuttle::sync::Mutex::default())
            } else {
                Self::Real(std::sync::Mutex::default())
            }
        }
    }

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            match self {
                Self::Real(guard) => guard,
                Self::Model(guard) => guard,
            }
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            match self {
                Self::Real(guard) => guard,
                Self::Model(guard) => guard,
            }
        }
    }
}
