//! The precision in which a GPU multiplies matrices: float32 or TF32.
//!
//! libtorch has one setting for the whole process, which its own threads (those of backward passes)
//! read too. Jobs that compute at the same time therefore have to agree on it: a job that requires
//! the other setting waits until all running jobs have ended.

use std::ffi::c_void;
use std::sync::{Condvar, Mutex, PoisonError};

use lethe_shared::vocabulary::Precision;
use tch::Device;

/// Symbols of libtorch 2.11 for which tch has no bindings.
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
        pub(super) fn set_float32_precision(
            context: *mut c_void,
            backend: i32,
            op: i32,
            precision: i32,
        );
        /// `void at::Context::setSDPUseCuDNN(bool)`
        #[link_name = "_ZN2at7Context14setSDPUseCuDNNEb"]
        pub(super) fn use_cudnn_for_attention(context: *mut c_void, use_it: bool);
        /// `at::NoTF32Guard::NoTF32Guard()`, an object of one byte: TF32 is disabled on this thread
        /// while it lives.
        #[link_name = "_ZN2at11NoTF32GuardC1Ev"]
        pub(super) fn no_tf32_guard_new(guard: *mut u8);
        /// `at::NoTF32Guard::~NoTF32Guard()`
        #[link_name = "_ZN2at11NoTF32GuardD1Ev"]
        pub(super) fn no_tf32_guard_drop(guard: *mut u8);
    }
}

/// Disables cuDNN's attention, which creates a plan for every shape of bfloat16 batches; nearly
/// every concept has a new shape. Call once, before the first job.
pub fn disable_cudnn_attention() {
    // SAFETY: the context lives as long as the process.
    unsafe { libtorch::use_cudnn_for_attention(libtorch::context(), false) }
}

/// The current setting, and the number of running jobs that require it.
struct Setting {
    /// Whether TF32 is enabled. `None` stands for libtorch's initial state: float32 for products
    /// and TF32 for convolutions.
    tf32: Option<bool>,
    jobs: usize,
}

static SETTING: Mutex<Setting> = Mutex::new(Setting { tf32: None, jobs: 0 });
static CHANGED: Condvar = Condvar::new();

/// Keeps the setting unchanged while it lives.
#[derive(Debug)]
#[must_use = "the setting may change as soon as the guard is dropped"]
pub struct Guard {
    held: bool,
}

/// Sets the precision that a job requires, for as long as the returned guard lives. Blocks while
/// running jobs require another one.
///
/// Has no effect on a CPU, which always multiplies float32 in float32.
pub fn acquire(precision: Precision, device: Device) -> Guard {
    if !device.is_cuda() {
        return Guard { held: false };
    }
    let tf32 = precision == Precision::Tf32;
    let setting = SETTING.lock().unwrap_or_else(PoisonError::into_inner);
    let is_in_other_use = |setting: &mut Setting| setting.jobs > 0 && setting.tf32 != Some(tf32);
    let mut setting =
        CHANGED.wait_while(setting, is_in_other_use).unwrap_or_else(PoisonError::into_inner);
    if setting.tf32 != Some(tf32) {
        let value = if tf32 { libtorch::TF32 } else { libtorch::IEEE };
        for op in [libtorch::PRODUCT, libtorch::CONVOLUTION] {
            // SAFETY: the context lives as long as the process, and no job is computing.
            unsafe {
                libtorch::set_float32_precision(libtorch::context(), libtorch::CUDA, op, value)
            }
        }
        setting.tf32 = Some(tf32);
    }
    setting.jobs += 1;
    Guard { held: true }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.held {
            SETTING.lock().unwrap_or_else(PoisonError::into_inner).jobs -= 1;
            CHANGED.notify_all();
        }
    }
}

/// Runs `act` with full float32 products on this thread, whatever the job's precision, so that
/// decisions do not depend on rounding.
///
/// Has no effect on backward passes, which run on other threads.
pub fn in_full_precision<T>(act: impl FnOnce() -> T) -> T {
    struct NoTf32Guard(u8);
    impl Drop for NoTf32Guard {
        fn drop(&mut self) {
            // SAFETY: the object was constructed on this thread and is destroyed once.
            unsafe { libtorch::no_tf32_guard_drop(&raw mut self.0) }
        }
    }
    let mut guard = NoTf32Guard(0);
    // SAFETY: an at::NoTF32Guard consists of one `bool`.
    unsafe { libtorch::no_tf32_guard_new(&raw mut guard.0) };
    act()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use super::*;

    #[test]
    fn jobs_of_one_precision_run_together_while_others_wait() {
        let gpu = Device::Cuda(0);
        let (first, second) = (acquire(Precision::Float32, gpu), acquire(Precision::Bfloat16, gpu));
        let entered = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _guard = acquire(Precision::Tf32, gpu);
                entered.store(true, Ordering::SeqCst);
            });
            std::thread::sleep(Duration::from_millis(50));
            drop(first);
            // Jobs on a CPU do not wait.
            drop(acquire(Precision::Tf32, Device::Cpu));
            std::thread::sleep(Duration::from_millis(50));
            assert!(!entered.load(Ordering::SeqCst));
            drop(second);
        });
        assert!(entered.load(Ordering::SeqCst));
        drop(acquire(Precision::Float32, gpu));
        assert_eq!(SETTING.lock().unwrap().tf32, Some(false));
    }

    #[test]
    fn products_in_full_precision_are_products() {
        let product = in_full_precision(|| {
            tch::Tensor::from_slice(&[1.0f32, 2.0]).dot(&tch::Tensor::from_slice(&[3.0f32, 4.0]))
        });
        assert_eq!(f64::try_from(product).unwrap(), 11.0);
    }
}
