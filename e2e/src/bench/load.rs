//! What a process has used, as `/proc` tells.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;

/// `sysconf(_SC_CLK_TCK)`, which is 100 on every Linux that Rust runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// Processor time so far, and memory.
#[derive(Debug, Clone, Copy, Default)]
pub struct Load {
    pub cpu: Duration,
    /// Bytes that are in memory now.
    pub resident: u64,
    /// The most that ever were.
    pub resident_max: u64,
}

/// Of one process.
pub fn of(pid: u32) -> anyhow::Result<Load> {
    let folder = Path::new("/proc").join(pid.to_string());
    let read = |file| std::fs::read_to_string(folder.join(file)).with_context(|| format!("process {pid} is gone"));
    parse(&read("stat")?, &read("status")?).with_context(|| format!("/proc/{pid} is not as Linux writes it"))
}

fn parse(stat: &str, status: &str) -> Option<Load> {
    // The program's name stands in parentheses and may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
    let kilobytes = |name: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':').split_whitespace().next()?.parse().ok()
    };
    Some(Load {
        cpu: Duration::from_secs_f64(ticks / TICKS_PER_SECOND),
        resident: kilobytes("VmRSS")? * 1_024,
        resident_max: kilobytes("VmHWM")? * 1_024,
    })
}

/// The processes of the control plane that `cluster.sh` started in `folder`, by component (`kube-apiserver`, `etcd`, …).
pub fn of_cluster(folder: &str) -> Vec<(String, u32)> {
    let mark = format!("CROFT_STARTED_IN={folder}");
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = processes.filter_map(|process| process.file_name().to_str()?.parse::<u32>().ok());
    let ours = ids.filter_map(|pid| {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
        read("environ")?.split('\0').any(|variable| variable == mark).then_some(())?;
        let component = read("cmdline")?.split('\0').nth(1)?.to_owned();
        component.chars().all(|letter| letter.is_ascii_lowercase() || letter == '-').then_some((component, pid))
    });
    ours.collect()
}

/// Bytes as megabytes, for people.
#[expect(clippy::cast_precision_loss, reason = "for people")]
pub fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_whatever_its_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 0 0 0 0 0 150 50 0 0 20 0 1 0 1 1 1";
        let load = parse(stat, "Name:\ta\nVmHWM:\t  200 kB\nVmRSS:\t  100 kB\n").unwrap();
        assert_eq!(load.cpu, Duration::from_secs(2));
        assert_eq!((load.resident, load.resident_max), (102_400, 204_800));
    }
}
