//! A program's metrics, read as Prometheus would.

use std::net::SocketAddr;

use anyhow::Context as _;

/// All metrics of one program at one moment.
#[derive(Debug, Clone)]
pub struct Scrape(String);

impl Scrape {
    /// Asks a program's `/metrics`.
    pub async fn of(http: &reqwest::Client, address: SocketAddr) -> anyhow::Result<Self> {
        let answer = http.get(format!("http://{address}/metrics")).send().await.context("metrics")?;
        Ok(Self(answer.error_for_status()?.text().await?))
    }

    /// The sum of the series called `name` whose labels contain all of `labels`, each as `name="value"`.
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let values = self.0.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let own_labels = series.strip_prefix(name)?;
            let is_it = own_labels.is_empty() || own_labels.starts_with('{');
            (is_it && labels.iter().all(|label| own_labels.contains(label))).then(|| value.parse::<f64>().ok())?
        });
        values.sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_summed_by_name_and_labels() {
        let text = "# TYPE a counter\na{kind=\"x\",verb=\"y\"} 3\na{kind=\"z\"} 4\na_total{kind=\"x\"} 50\nb 1.5\n";
        let scrape = Scrape(text.to_owned());
        assert!((scrape.sum("a", &[]) - 7.0).abs() < 1e-9);
        assert!((scrape.sum("a", &["kind=\"x\""]) - 3.0).abs() < 1e-9);
        assert!((scrape.sum("b", &[]) - 1.5).abs() < 1e-9);
    }
}
