//! Ctrl-C while a command waits.

use super::exit::{CliError, Exit};

/// From now on Ctrl-C (or SIGTERM) ends this process with what `parting` says. Work that runs in other processes goes on.
///
/// For commands that only wait or show; those with work of their own in this process catch the signal themselves.
pub fn on_interrupt(parting: impl FnOnce() -> Result<(), CliError> + Send + 'static) {
    let wait = move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        let caught = runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let mut interrupt = signal(SignalKind::interrupt())?;
            let mut terminate = signal(SignalKind::terminate())?;
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            Ok::<(), std::io::Error>(())
        });
        if caught.is_ok() {
            let result = parting();
            if let Err(error) = &result {
                error.print();
            }
            std::process::exit(result.map_or_else(|error| i32::from(error.exit_code()), |()| 0));
        }
    };
    if let Err(error) = std::thread::Builder::new().name("bosfs-signals".to_owned()).spawn(wait) {
        log::debug!("signals keep their default effect: {error}");
    }
}

/// The usual parting: code 4 and one sentence.
pub fn says(sentence: impl Into<String>) -> impl FnOnce() -> Result<(), CliError> + Send + 'static {
    let sentence = sentence.into();
    move || Err(CliError::new(Exit::Interrupted, sentence))
}
