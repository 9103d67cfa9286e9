//! `kitfs`, the program. Everything is in the library.

fn main() -> std::process::ExitCode {
    kitfs::cli::run(std::env::args_os())
}
