//! In what a GPU multiplies matrices.
//!
//! libtorch keeps one setting for the process, which its own threads (those of backward passes) read too. So all jobs of a process that
//! compute at one time have it in common: one that wants it otherwise waits until the others are done.

use std::ffi::c_void;
use std::sync::{Condvar, Mutex, PoisonError};

use lethe_shared::manifest::Precision;
use tch::Device;

/// Symbols of libtorch 2.11 that tch does not bind.
mod libtorch {
    use super::c_void;

    pub(super) const CUDA: i32 = 1;
    pub(super) const CONVOLUTION: i32 = 1;
    pub(super) const PRODUCT: i32 = 3;
    pub(super) const IEEE: i32 = 1;
    pub(super) const TF32: i32 = 2;

    unsafe extern "C" {
        /// `at::Context& at::globalContext()`
        #[link_name = "_ZN2at13globalContextEv"]
        pub(super) fn context() -> *mut c_void;
        /// `void at::Context::setFloat32Precision(Float32Backend, Float32Op, Float32Precision)`
        #[link_name = "_ZN2at7Context19setFloat32PrecisionENS_14Float32BackendENS_9Float32OpENS_16Float32PrecisionE"]
        pub(super) fn set_float32_precision(context: *mut c_void, backend: i32, op: i32, precision: i32);
        /// `void at::Context::setSDPUseCuDNN(bool)`
        #[link_name = "_ZN2at7Context14setSDPUseCuDNNEb"]
        pub(super) fn use_cudnn_for_attention(context: *mut c_void, use_it: bool);
        /// `at::NoTF32Guard::NoTF32Guard()`, of one byte: nothing this thread multiplies is rounded while it lives.
        #[link_name = "_ZN2at11NoTF32GuardC1Ev"]
        pub(super) fn exact_begins(guard: *mut u8);
        /// `at::NoTF32Guard::~NoTF32Guard()`
        #[link_name = "_ZN2at11NoTF32GuardD1Ev"]
        pub(super) fn exact_ends(guard: *mut u8);
    }
}

/// Leaves cuDNN out of attention: it makes a plan for every shape of bfloat16 batches, and each concept has another. Call once, before jobs.
pub fn plan_nothing() {
    // SAFETY: the context lives as long as the process.
    unsafe { libtorch::use_cudnn_for_attention(libtorch::context(), false) }
}

/// What is set, and for how many jobs.
struct Setting {
    /// `None`: as libtorch starts, which is float32 for products and TF32 for convolutions.
    rounds: Option<bool>,
    jobs: usize,
}

static SETTING: Mutex<Setting> = Mutex::new(Setting { rounds: None, jobs: 0 });
static CHANGED: Condvar = Condvar::new();

/// A job's hold on the setting.
#[derive(Debug)]
pub struct Multiplying {
    held: bool,
}

/// Lets this device multiply as a job's precision has it, for as long as what this gives lives. Waits for jobs that have it otherwise. A
/// CPU always multiplies float32 in float32.
pub fn multiplying(precision: Precision, device: Device) -> Multiplying {
    if !device.is_cuda() {
        return Multiplying { held: false };
    }
    let rounds = precision == Precision::Tf32;
    let setting = SETTING.lock().unwrap_or_else(PoisonError::into_inner);
    let others = |setting: &mut Setting| setting.jobs > 0 && setting.rounds != Some(rounds);
    let mut setting = CHANGED.wait_while(setting, others).unwrap_or_else(PoisonError::into_inner);
    if setting.rounds != Some(rounds) {
        let to = if rounds { libtorch::TF32 } else { libtorch::IEEE };
        for op in [libtorch::PRODUCT, libtorch::CONVOLUTION] {
            // SAFETY: the context lives as long as the process; no job computes meanwhile.
            unsafe { libtorch::set_float32_precision(libtorch::context(), libtorch::CUDA, op, to) }
        }
        setting.rounds = Some(rounds);
    }
    setting.jobs += 1;
    Multiplying { held: true }
}

impl Drop for Multiplying {
    fn drop(&mut self) {
        if self.held {
            SETTING.lock().unwrap_or_else(PoisonError::into_inner).jobs -= 1;
            CHANGED.notify_all();
        }
    }
}

/// Does something in which this thread multiplies float32 in float32 whatever the job's precision: verdicts must not be rounded.
/// Outside of backward passes, which have threads of their own.
pub fn exactly<T>(act: impl FnOnce() -> T) -> T {
    struct Guard(u8);
    impl Drop for Guard {
        fn drop(&mut self) {
            // SAFETY: made by its constructor, on this thread, and ended once.
            unsafe { libtorch::exact_ends(&raw mut self.0) }
        }
    }
    let mut guard = Guard(0);
    // SAFETY: a NoTF32Guard is one `bool`.
    unsafe { libtorch::exact_begins(&raw mut guard.0) };
    act()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use super::*;

    #[test]
    fn jobs_of_one_precision_run_together_and_others_wait() {
        let gpu = Device::Cuda(0);
        let (first, second) = (multiplying(Precision::Float32, gpu), multiplying(Precision::Bfloat16, gpu));
        let entered = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _hold = multiplying(Precision::Tf32, gpu);
                entered.store(true, Ordering::SeqCst);
            });
            std::thread::sleep(Duration::from_millis(50));
            drop(first);
            // A CPU waits for nobody.
            drop(multiplying(Precision::Tf32, Device::Cpu));
            std::thread::sleep(Duration::from_millis(50));
            assert!(!entered.load(Ordering::SeqCst));
            drop(second);
        });
        assert!(entered.load(Ordering::SeqCst));
        drop(multiplying(Precision::Float32, gpu));
        assert_eq!(SETTING.lock().unwrap().rounds, Some(false));
    }

    #[test]
    fn exact_products_are_products() {
        let product = exactly(|| tch::Tensor::from_slice(&[1.0f32, 2.0]).dot(&tch::Tensor::from_slice(&[3.0f32, 4.0])));
        assert_eq!(f64::try_from(product).unwrap(), 11.0);
    }
}
