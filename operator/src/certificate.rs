//! Certificates of Croft's parts: what each must say, and whether one that exists still says it.

use croft_serve::tls::PeerRole;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use x509_parser::prelude::{ASN1Time, FromDer as _, GeneralName, X509Certificate};

use crate::authority::{Authority, Error};

/// How long a certificate holds. It is renewed when a third of that is left, and [workers'](Subject::workers) up to [`SPREAD_SECONDS`]
/// sooner.
const LIFETIME_SECONDS: i64 = 90 * 24 * 60 * 60;
/// Each renewal is a rollout of a tenant's workers: those of tenants that were made together must not come together.
const SPREAD_SECONDS: i64 = LIFETIME_SECONDS / 6;
/// For clocks that go slow.
const BACKDATED_SECONDS: i64 = 5 * 60;

/// What a certificate must say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Whose it is; peers judge by this alone.
    pub role: PeerRole,
    /// The names under which its owner is dialled.
    pub dns_names: Vec<String>,
}

/// A certificate with its key, as PEM.
#[derive(Clone)]
pub struct Issued {
    pub cert: String,
    pub key: String,
}

impl Subject {
    /// The operator's own.
    pub fn operator(namespace: &str) -> Self {
        let dns_names = vec![format!("croft-operator.{namespace}.svc"), "localhost".to_owned()];
        Self { role: PeerRole::Operator, dns_names }
    }

    /// The front's.
    pub fn front(namespace: &str) -> Self {
        let dns_names = vec![
            format!("croft-front.{namespace}.svc"),
            format!("croft-front-internal.{namespace}.svc"),
            "localhost".to_owned(),
        ];
        Self { role: PeerRole::Front, dns_names }
    }

    /// That of a tenant's workers. The front dials pods by address and expects this name, so the certificate of another
    /// tenant's worker fails the handshake.
    pub fn workers(tenant: &str, namespace: &str) -> Self {
        let role = PeerRole::Worker { tenant: tenant.to_owned() };
        Self { role, dns_names: vec![format!("workers.{namespace}.svc")] }
    }

    /// A worker only answers: with its certificate it can't call anyone.
    fn usages(&self) -> Vec<ExtendedKeyUsagePurpose> {
        match self.role {
            PeerRole::Worker { .. } => vec![ExtendedKeyUsagePurpose::ServerAuth],
            PeerRole::Operator | PeerRole::Front => {
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]
            }
        }
    }

    /// Makes a certificate that says this, from `now` (seconds since 1970) on.
    pub fn issue(&self, authority: &Authority, now: i64) -> Result<Issued, Error> {
        let mut params = CertificateParams::new(self.dns_names.clone())?;
        params.subject_alt_names.push(SanType::URI(self.role.uri().as_str().try_into()?));
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, self.role.uri());
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = self.usages();
        params.use_authority_key_identifier_extension = true;
        params.not_before = ASN1Time::from_timestamp(now - BACKDATED_SECONDS)?.to_datetime();
        params.not_after = ASN1Time::from_timestamp(now + LIFETIME_SECONDS)?.to_datetime();
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, authority.issuer())?;
        Ok(Issued { cert: cert.pem(), key: key.serialize_pem() })
    }

    /// Whether a certificate says this, comes from `authority`, holds already and is not to be renewed yet at `now` (seconds since 1970), and has
    /// its key with it. One that a clock made that was ahead is refused by everybody for as long.
    pub fn still_holds(&self, issued: &Issued, authority: &Authority, now: i64) -> bool {
        let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(issued.cert.as_bytes()) else { return false };
        let Ok((_, certificate)) = X509Certificate::from_der(&pem.contents) else { return false };
        let Ok(key) = KeyPair::from_pem(&issued.key) else { return false };
        let renew_at = certificate.validity().not_after.timestamp() - LIFETIME_SECONDS / 3;
        certificate.validity().not_before.timestamp() <= now
            && now < renew_at - self.sooner(&certificate)
            && key.public_key_raw() == &*certificate.public_key().subject_public_key.data
            && authority.signed(&certificate)
            && self.is_said_by(&certificate)
    }

    /// So many seconds sooner it is renewed: as many in each pass, and others for each certificate, the next one for the same subject too.
    /// Operator and fronts have their own ways not to begin anew together.
    fn sooner(&self, certificate: &X509Certificate<'_>) -> i64 {
        match self.role {
            PeerRole::Worker { .. } => {
                // The end of a point's second coordinate, which is as good as chance.
                let key = certificate.public_key().subject_public_key.data.last_chunk::<4>();
                key.map_or(0, |chance| i64::from(u32::from_be_bytes(*chance)) % SPREAD_SECONDS)
            }
            PeerRole::Operator | PeerRole::Front => 0,
        }
    }

    fn is_said_by(&self, certificate: &X509Certificate<'_>) -> bool {
        let Ok(Some(names)) = certificate.subject_alternative_name() else { return false };
        let mut dns_names = Vec::new();
        let mut uris = Vec::new();
        for name in &names.value.general_names {
            match name {
                GeneralName::DNSName(name) => dns_names.push(*name),
                GeneralName::URI(uri) => uris.push(*uri),
                _ => return false,
            }
        }
        dns_names == self.dns_names && uris == [self.role.uri()]
    }
}

/// When a certificate issued at `now` should be replaced at the latest.
pub fn renew_at(now: i64) -> i64 {
    now + LIFETIME_SECONDS - LIFETIME_SECONDS / 3
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;

    #[test]
    fn a_certificate_holds_until_a_third_of_its_time_is_left() {
        let authority = Authority::generate(NOW).unwrap();
        for subject in [Subject::front("croft-system"), Subject::operator("croft-system")] {
            let issued = subject.issue(&authority, NOW).unwrap();
            assert!(subject.still_holds(&issued, &authority, NOW));
            assert!(subject.still_holds(&issued, &authority, renew_at(NOW) - 1));
            assert!(!subject.still_holds(&issued, &authority, renew_at(NOW)));
        }
    }

    #[test]
    fn workers_certificates_that_were_made_together_are_renewed_apart_and_none_later_than_others() {
        const DAY: i64 = 24 * 60 * 60;
        let authority = Authority::generate(NOW).unwrap();
        let mut renewed: Vec<i64> = (0..100)
            .map(|number| {
                let tenant = format!("heron-{number}");
                let subject = Subject::workers(&tenant, &format!("tenant-{tenant}"));
                let issued = subject.issue(&authority, NOW).unwrap();
                let holds = |seconds: i64| subject.still_holds(&issued, &authority, NOW + seconds);
                assert!(holds(0) && holds(renew_at(0) - SPREAD_SECONDS));
                // It holds at the first and no more at the last of these.
                let (mut first, mut last) = (0, renew_at(0));
                assert!(!holds(last));
                while last - first > 1 {
                    let middle = i64::midpoint(first, last);
                    if holds(middle) { first = middle } else { last = middle }
                }
                last
            })
            .collect();
        renewed.sort_unstable();
        // Of a hundred over fifteen days some seven come in a day.
        assert!(renewed[99] - renewed[0] > 10 * DAY, "{renewed:?}");
        let most =
            renewed.iter().map(|begin| renewed.iter().filter(|&other| (*begin..begin + DAY).contains(other)).count());
        assert!(most.max().unwrap() <= 30, "{renewed:?}");
    }

    #[test]
    fn a_certificate_of_a_clock_that_was_ahead_does_not_hold_until_its_time_has_come() {
        let authority = Authority::generate(NOW).unwrap();
        let workers = Subject::workers("heron", "tenant-heron");
        for subject in [Subject::front("croft-system"), Subject::operator("croft-system"), workers] {
            let issued = subject.issue(&authority, NOW).unwrap();
            assert!(subject.still_holds(&issued, &authority, NOW - BACKDATED_SECONDS), "other clocks may go slow");
            assert!(!subject.still_holds(&issued, &authority, NOW - BACKDATED_SECONDS - 1));
        }
    }

    #[test]
    fn anothers_certificate_does_not_hold() {
        let [authority, other] = [(), ()].map(|()| Authority::generate(NOW).unwrap());
        let subject = Subject::workers("heron", "tenant-heron");
        let issued = |subject: &Subject, authority| subject.issue(authority, NOW).unwrap();
        let others = issued(&Subject::workers("egret", "tenant-egret"), &authority);
        assert!(!subject.still_holds(&others, &authority, NOW));
        assert!(!subject.still_holds(&issued(&subject, &other), &authority, NOW), "signed by another authority");
        let own = issued(&subject, &authority);
        assert!(!subject.still_holds(&Issued { key: others.key, ..own.clone() }, &authority, NOW), "another's key");
        assert!(!subject.still_holds(&Issued { cert: "garbled".into(), ..own }, &authority, NOW));
    }

    #[test]
    fn a_worker_can_only_answer() {
        let authority = Authority::generate(NOW).unwrap();
        let usages = |subject: Subject| {
            let issued = subject.issue(&authority, NOW).unwrap();
            let (_, pem) = x509_parser::pem::parse_x509_pem(issued.cert.as_bytes()).unwrap();
            let certificate = pem.parse_x509().unwrap();
            let usage = certificate.extended_key_usage().unwrap().unwrap().value.clone();
            (usage.server_auth, usage.client_auth)
        };
        assert_eq!(usages(Subject::workers("heron", "tenant-heron")), (true, false));
        assert_eq!(usages(Subject::front("croft-system")), (true, true));
        assert_eq!(usages(Subject::operator("croft-system")), (true, true));
    }
}
