//! Work of the start, done on a stack that is given back.

/// Runs `work` in a thread of its own and waits for it. A parser of settings takes hundreds of KiB of stack once; on the main
/// thread's they would count among the program's memory for as long as it runs.
///
/// # Errors
/// When the system gives no thread.
pub fn aside<T: Send>(work: impl FnOnce() -> T + Send) -> std::io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("start".to_owned()).spawn_scoped(scope, work)?;
        Ok(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_of_the_work_comes_back() {
        let here = std::thread::current().id();
        assert_ne!(aside(|| std::thread::current().id()).unwrap(), here);
        assert!(std::panic::catch_unwind(|| aside(|| panic!("told on"))).is_err());
    }
}
