//! Reads a program's arguments and turns every mistake in them into one sentence that names the flag and its variable.

use std::ffi::OsString;

use clap::builder::OsStringValueParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Command};

/// A program's arguments, checked once, at start.
pub trait Config: clap::Parser {
    /// What clap can't see, one sentence per mistake that names the flag and the variable, such as
    /// `--sessions-max (CROFT_SESSIONS_MAX) must be at least 1.`
    fn mistakes(&self) -> Vec<String> {
        Vec::new()
    }
}

/// All that is wrong with the arguments. A program that meets it exits with 2.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct Mistakes(pub Vec<String>);

/// The arguments of this process. Exits with 2 and one sentence per mistake on stderr, or with 0 after `--help`.
pub fn parse<C: Config>() -> C {
    try_parse_from(std::env::args_os()).unwrap_or_else(|mistakes| {
        eprintln!("{mistakes}");
        std::process::exit(2)
    })
}

/// The arguments from `args`, the first of which is the program's name, and from the environment. Exits with 0 after
/// `--help` and `--version`.
pub fn try_parse_from<C: Config>(args: impl IntoIterator<Item = impl Into<OsString>>) -> Result<C, Mistakes> {
    let args: Vec<OsString> = args.into_iter().map(Into::into).collect();
    let error = match C::try_parse_from(&args) {
        Ok(config) => {
            let mistakes = config.mistakes();
            return if mistakes.is_empty() { Ok(config) } else { Err(Mistakes(mistakes)) };
        }
        Err(error) => error,
    };
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        error.exit();
    }
    Err(Mistakes(all_of(error, C::command(), &args)))
}

/// clap stops at the first mistake. So each argument that it objects to is made to accept anything, and we ask again.
fn all_of(first: clap::Error, mut command: Command, args: &[OsString]) -> Vec<String> {
    // Only a built command prints its arguments as errors do, and only one that isn't built can be changed.
    let mut built = command.clone();
    built.build();
    let mut sentences = Vec::new();
    let mut next = Some(first);
    while let Some(error) = next {
        let objected: Vec<Arg> = names(&error).iter().filter_map(|name| find(&built, name)).collect();
        let relaxable = matches!(
            error.kind(),
            ErrorKind::ValueValidation | ErrorKind::InvalidValue | ErrorKind::MissingRequiredArgument
        );
        if objected.is_empty() || !relaxable {
            sentences.push(first_line(&error));
            break;
        }
        for arg in &objected {
            sentences.push(sentence(&error, arg));
            command = relax(command, arg);
        }
        next = command.clone().try_get_matches_from(args).err();
    }
    sentences
}

/// The arguments that clap names, as it prints them: `--postgres-url <POSTGRES_URL>`.
fn names(error: &clap::Error) -> Vec<String> {
    match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(name)) => vec![name.clone()],
        Some(ContextValue::Strings(names)) => names.clone(),
        _ => Vec::new(),
    }
}

fn find(command: &Command, name: &str) -> Option<Arg> {
    let own = command.get_arguments().find(|arg| arg.to_string() == name).cloned();
    own.or_else(|| command.get_subcommands().find_map(|subcommand| find(subcommand, name)))
}

fn relax(command: Command, arg: &Arg) -> Command {
    let id = arg.get_id().clone();
    let anything = |arg: Arg| arg.required(false).value_parser(OsStringValueParser::new());
    let has = |command: &Command| command.get_arguments().any(|own| *own.get_id() == id);
    let mut command = if has(&command) { command.mut_arg(id.clone(), anything) } else { command };
    let below: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    for name in below {
        command = command.mut_subcommand(name, |subcommand| relax(subcommand, arg));
    }
    command
}

fn sentence(error: &clap::Error, arg: &Arg) -> String {
    let name = flag_and_variable(arg);
    if error.kind() == ErrorKind::MissingRequiredArgument {
        return format!("{name} is required.");
    }
    let value = match error.get(ContextKind::InvalidValue) {
        Some(ContextValue::String(value)) => value.as_str(),
        _ => "",
    };
    let reason = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    let allowed = match error.get(ContextKind::ValidValue) {
        Some(ContextValue::Strings(values)) if !values.is_empty() => format!("it must be one of {}", values.join(", ")),
        _ => reason,
    };
    // A value that --help may not show is a secret.
    if arg.is_hide_env_values_set() {
        let told = !allowed.is_empty() && !allowed.contains(value);
        return if told { format!("{name} is not usable: {allowed}.") } else { format!("{name} is not usable.") };
    }
    match (value.is_empty(), allowed.is_empty()) {
        (true, _) => format!("{name} must not be empty."),
        (false, true) => format!("{name} is not usable: {value:?}."),
        (false, false) => format!("{name} is not usable: {value:?}: {allowed}."),
    }
}

fn flag_and_variable(arg: &Arg) -> String {
    let flag = arg.get_long().map_or_else(|| arg.to_string(), |long| format!("--{long}"));
    match arg.get_env() {
        Some(variable) => format!("{flag} ({})", variable.to_string_lossy()),
        None => flag,
    }
}

/// clap's own words without its usage block, for a mistake that isn't about one argument, such as an unknown flag.
fn first_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    format!("{}.", line.trim_start_matches("error: ").trim_end_matches('.'))
}
