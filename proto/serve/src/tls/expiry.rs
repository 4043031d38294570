//! `croft_certificate_expiry_timestamp_seconds`: until when the program's own certificate is good.

use prometheus::IntGauge;

use super::{TlsFiles, certificates};
use crate::Metrics;

impl TlsFiles {
    /// Tells of the certificate's end on the page of metrics, once: a program begins anew for another certificate. 0 is told of one
    /// that can't be read. Fails when something of the name is there.
    pub fn register(&self, metrics: &Metrics) -> prometheus::Result<()> {
        let help = "When the certificate that the program began with is good no more, in seconds since 1970.";
        let expiry = IntGauge::new("croft_certificate_expiry_timestamp_seconds", help)?;
        expiry.set(self.expire_seconds().unwrap_or(0));
        metrics.registry().register(Box::new(expiry))
    }

    /// Of the program's own, which comes first in its file.
    fn expire_seconds(&self) -> Option<i64> {
        let own = certificates(&self.cert).ok()?.into_iter().next()?;
        let (_, own) = x509_parser::parse_x509_certificate(&own).ok()?;
        Some(own.validity().not_after.timestamp())
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    fn told(cert: &str) -> String {
        let metrics = Metrics::new("croft-test").unwrap();
        let files = TlsFiles { cert: cert.into(), key: Vec::new(), ca: Vec::new() };
        files.register(&metrics).unwrap();
        let text = metrics.text().unwrap();
        let line = text.lines().find(|line| line.starts_with("croft_certificate_expiry_timestamp_seconds "));
        line.unwrap().rsplit_once(' ').unwrap().1.to_owned()
    }

    #[test]
    fn the_end_of_the_first_certificate_is_told() {
        let key = KeyPair::generate().unwrap();
        let [own, authority] = [2027, 2031].map(|year| {
            let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
            params.not_after = date_time_ymd(year, 1, 1);
            params.self_signed(&key).unwrap().pem()
        });
        assert_eq!(told(&format!("{own}{authority}")), "1798761600");
        assert_eq!(told("half"), "0");
    }
}
