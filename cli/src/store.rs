//! `outrider store`: moving what a control plane keeps from one database to another.

use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use outrider_control_plane::{Place, migrate};
use serde::Serialize;

use crate::{
    failure::{Exit, Failure},
    output::Console,
};

/// Look after the store of a control plane that is stopped.
#[derive(Debug, clap::Args)]
#[command(
    arg_required_else_help = true,
    after_long_help = "\
Examples:
  outrider store migrate --from sqlite:/var/lib/outrider --to file:/etc/outrider/store-url
  outrider store migrate --from postgres://outrider@db.example/mesh --to sqlite:/var/lib/outrider"
)]
pub(crate) struct Store {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Copy a store into an empty database or a new file
    ///
    /// The control plane must be stopped. The source is only read and stays as it is; the target is checked row by row before
    /// anything of it counts. CA keys stay encrypted with the key that they have: the control plane needs the same key there.
    Migrate {
        /// The store to copy: `sqlite:DIR`, `sqlite:FILE`, `postgres://…`, or `file:PATH` of a file that says it
        #[arg(long, value_name = "PLACE", value_parser = Place::parse)]
        from: Place,
        /// Where to, in the same words. A URL with a password is better kept in a file
        #[arg(long, value_name = "PLACE", value_parser = Place::parse)]
        to: Place,
    },
}

/// The answer of `store migrate`. The shape that programs read.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Migrated {
    from: String,
    to: String,
    tables: Vec<MigratedTable>,
    /// Rows of all tables.
    rows: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct MigratedTable {
    table: String,
    rows: u64,
}

impl Store {
    /// Runs the verb.
    pub(crate) async fn run(self, console: &Console) -> Result<Exit, Failure> {
        let Verb::Migrate { from, to } = self.verb;
        let bar = if console.is_for_people() { ProgressBar::new(0) } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} rows {elapsed}") {
            bar.set_style(style);
        }
        let moved = migrate(&from, &to, |done, all| {
            bar.set_length(all);
            bar.set_position(done);
        })
        .await;
        bar.finish_and_clear();
        let moved = moved.map_err(|error| Failure::Store(error.to_string()))?;
        let tables: Vec<_> = moved.into_iter().map(|one| MigratedTable { table: one.table, rows: one.rows }).collect();
        let rows = tables.iter().map(|one| one.rows).sum();
        let migrated = Migrated { from: from.to_string(), to: to.to_string(), tables, rows };
        if !console.is_for_people() {
            console.value(&migrated)?;
            return Ok(Exit::Done);
        }
        console.line(&format!("{rows} rows of {} tables copied and read back the same", migrated.tables.len()))?;
        console.remark("start the control plane there with the key of before: `--key-file`, or OUTRIDER_KEY");
        Ok(Exit::Done)
    }
}
