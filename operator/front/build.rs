//! `sqlx::migrate!` embeds the migrations, and can't tell cargo of a new one by itself.

fn main() {
    println!("cargo:rerun-if-changed=../../migrations");
}
