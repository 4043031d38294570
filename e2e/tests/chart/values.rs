//! Values in, objects out.

use croft_e2e::helm::{one, rendered, template};
use serde_json::{Value, json};

fn set(settings: &[&str]) -> Vec<Value> {
    rendered(&arguments(settings)).unwrap()
}

/// Helm's complaint about values that it must refuse.
fn refusal(settings: &[&str]) -> String {
    let output = template(&arguments(settings)).unwrap();
    assert!(!output.status.success(), "{settings:?} is taken");
    String::from_utf8(output.stderr).unwrap()
}

/// As YAML reads them, but what stands behind `text:` stays a text.
fn arguments<'all>(settings: &[&'all str]) -> Vec<&'all str> {
    let flag = |setting: &&'all str| match setting.strip_prefix("text:") {
        Some(text) => ["--set-string", text],
        None => ["--set", *setting],
    };
    settings.iter().flat_map(flag).collect()
}

fn pod(objects: &[Value], name: &str) -> Value {
    one(objects, "Deployment", name).unwrap()["spec"]["template"]["spec"].clone()
}

/// The variables of a program's container that have a value in the manifest.
fn variable(objects: &[Value], deployment: &str, name: &str) -> Option<String> {
    let pod = pod(objects, deployment);
    let variables = pod["containers"][0]["env"].as_array().unwrap();
    let mut named = variables.iter().filter(|variable| variable["name"] == name);
    let value = named.next().map(|variable| variable["value"].as_str().unwrap().to_owned());
    assert!(named.next().is_none(), "{name} is there twice");
    value
}

#[test]
fn great_numbers_are_written_as_the_front_reads_them() {
    let most = [
        ("leaseTtlMs", "3600000", "CROFT_LEASE_TTL_MS", "3600000"),
        ("messageBytesMax", "16777216", "CROFT_MESSAGE_BYTES_MAX", "16777216"),
        ("connectionsMax", "4294967295", "CROFT_CONNECTIONS_MAX", "4294967295"),
        ("streamsPerTenantMax", "4294967295", "CROFT_STREAMS_PER_TENANT_MAX", "4294967295"),
        ("requestsPerMinute", "4294967295", "CROFT_REQUESTS_PER_MINUTE", "4294967295"),
        ("sessionsPerMinute", "4294967295", "CROFT_SESSIONS_PER_MINUTE", "4294967295"),
        ("tokensPerMinute", "4294967295", "CROFT_TOKENS_PER_MINUTE", "4294967295"),
        ("retentionHours", "878400", "CROFT_RETENTION_HOURS", "878400"),
        ("shutdownDelaySeconds", "600", "CROFT_SHUTDOWN_DELAY_MS", "600000"),
        ("terminationGracePeriodSeconds", "86400", "CROFT_SHUTDOWN_GRACE_MS", "85795000"),
        ("replicas", "1000000", "CROFT_REPLICAS", "1000000"),
    ];
    // By a file, whose numbers Helm reads as floats.
    let file = json!({ "front": most.iter().map(|(value, number, ..)| {
        ((*value).to_owned(), number.parse::<u64>().unwrap().into())
    }).collect::<serde_json::Map<_, _>>() });
    let path = std::env::temp_dir().join(format!("croft-chart-{}.json", std::process::id()));
    std::fs::write(&path, file.to_string()).unwrap();
    let objects = rendered(&["--values", path.to_str().unwrap()]);
    std::fs::remove_file(&path).unwrap();
    let objects = objects.unwrap();
    for (value, _, name, written) in most {
        assert_eq!(variable(&objects, "croft-front", name).as_deref(), Some(written), "front.{value}");
    }
    assert_eq!(pod(&objects, "croft-front")["terminationGracePeriodSeconds"], 86_400);
    assert_eq!(one(&objects, "Deployment", "croft-front").unwrap()["spec"]["replicas"], 1_000_000);
    assert!(refusal(&["front.leaseTtlMs=3600001"]).contains("/front/leaseTtlMs"));
}

#[test]
fn what_has_no_value_of_its_own_goes_in_by_its_variable() {
    let objects = set(&[
        "text:operator.env.CROFT_TENANT_REMOVAL_SECONDS=600",
        "text:front.env.CROFT_POSTGRES_CONNECTIONS_MAX=32",
    ]);
    for (deployment, name, value) in [
        ("croft-operator", "CROFT_TENANT_REMOVAL_SECONDS", "600"),
        ("croft-front", "CROFT_POSTGRES_CONNECTIONS_MAX", "32"),
    ] {
        assert_eq!(variable(&objects, deployment, name).as_deref(), Some(value));
    }
    assert_eq!(variable(&objects, "croft-front", "CROFT_TENANT_REMOVAL_SECONDS"), None);
}

/// By `/readyz` all fronts went at once when Redis did.
#[test]
fn pods_are_sent_calls_for_as_long_as_they_can_serve() {
    let objects = set(&[]);
    for deployment in ["croft-front", "croft-operator"] {
        let probe = &pod(&objects, deployment)["containers"][0]["readinessProbe"];
        assert_eq!(probe["httpGet"], json!({ "path": "/servingz", "port": "metrics" }), "{deployment}");
    }
}

/// A pod whose volume is fuller than its size is evicted.
#[test]
fn batches_of_audit_records_fill_three_quarters_of_their_volume() {
    let objects = set(&[]);
    let pod = pod(&objects, "croft-front");
    let volumes = pod["volumes"].as_array().unwrap();
    let audit = volumes.iter().find(|volume| volume["name"] == "audit").unwrap();
    let size = audit["emptyDir"]["sizeLimit"].as_str().unwrap();
    let mebibytes: u64 = size.strip_suffix("Mi").unwrap().parse().unwrap();
    let bytes_max = variable(&objects, "croft-front", "CROFT_AUDIT_FOLDER_BYTES_MAX").unwrap();
    assert_eq!(bytes_max.parse::<u64>().unwrap(), (mebibytes << 20) * 3 / 4);
}

#[test]
fn what_the_chart_sets_itself_is_not_set_a_second_time() {
    for (part, name) in [
        ("front", "CROFT_LOG"),
        ("front", "CROFT_POSTGRES_URL"),
        ("front", "CROFT_ALERT_WEBHOOK_SECRET"),
        ("front", "CROFT_GRPC_ADDR"),
        ("front", "CROFT_TLS_KEY"),
        ("operator", "CROFT_FENCE"),
        ("operator", "CROFT_WORKER_PULL_SECRETS"),
        ("operator", "CROFT_TENANT_REMOVAL_SECOND"),
        ("operator", "LD_PRELOAD"),
    ] {
        let told = refusal(&[&format!("text:{part}.env.{name}=1")]);
        assert!(told.contains(&format!("/{part}/env': additional properties '{name}' not allowed")), "{told}");
    }
    let told = refusal(&["operator.env.CROFT_TENANT_REMOVAL_SECONDS=600"]);
    assert!(told.contains("want string"), "{told}");
}

#[test]
fn settings_say_which_release_wrote_them() {
    let objects = set(&[]);
    for name in ["croft-operator-settings", "croft-front-identity", "croft-front-rates"] {
        let settings = one(&objects, "ConfigMap", name).unwrap();
        assert_eq!(
            settings["data"]["release"],
            env!("CARGO_PKG_VERSION"),
            "{name}: what programs take to be their own"
        );
    }
}

#[test]
fn no_tier_gives_more_than_a_front_reads() {
    assert_eq!(croft_front::intake::MESSAGE_BYTES_CEILING, croft_crds::tenant::MESSAGE_BYTES_MAX as usize);
    let told = refusal(&[&format!("tiers.free.limits.maxMessageBytes={}", croft_crds::tenant::MESSAGE_BYTES_MAX + 1)]);
    assert!(told.contains("maxMessageBytes"), "{told}");
    set(&[&format!("tiers.free.limits.maxMessageBytes={}", croft_crds::tenant::MESSAGE_BYTES_MAX)]);
}

#[test]
fn workers_send_traces_where_they_are_told_and_the_fence_is_told_where_that_is() {
    let endpoint = |objects: &[Value]| variable(objects, "croft-operator", "CROFT_WORKER_OTLP_ENDPOINT");
    assert_eq!(
        endpoint(&set(&["otlpEndpoint=http://collector:4317"])),
        None,
        "the platform's traces are another matter"
    );
    let objects = set(&[
        "workerOtlpEndpoint=http://collector.tracing:4317",
        "fence.collectors[0].namespace=tracing",
        "fence.collectors[0].podLabels.app=collector",
    ]);
    assert_eq!(endpoint(&objects).as_deref(), Some("http://collector.tracing:4317"));
    let settings = &one(&objects, "ConfigMap", "croft-operator-settings").unwrap()["data"];
    let fence = settings["fence.yaml"].as_str().unwrap();
    assert!(fence.contains("collectors:\n- namespace: tracing\n  podLabels:\n    app: collector"), "{fence}");
    assert!(refusal(&["workerOtlpEndpoint=https://collector:4317"]).contains("workerOtlpEndpoint"));
    assert!(refusal(&["fence.collectors[0].namespace=tracing"]).contains("collectors"));
}

#[test]
fn a_server_of_names_is_pods_or_an_address() {
    let openshift =
        ["fence.dns[0].namespace=openshift-dns", "fence.dns[0].podLabels.app=dns", "fence.dns[0].port=5353"];
    let node_local = ["fence.dns[0].cidr=169.254.20.10/32"];
    for good in [&openshift[..], &node_local[..]] {
        one(&set(good), "ConfigMap", "croft-operator-settings").unwrap();
    }
    for bad in [&openshift[..1], &openshift[1..], &openshift[2..], &[openshift[0], openshift[1], node_local[0]]] {
        assert!(refusal(bad).contains("/fence/dns/0"), "{bad:?}");
    }
}

#[test]
fn pods_go_where_the_platform_wants_them() {
    for part in ["operator", "front"] {
        let settings = [
            "nodeSelector.pool=platform",
            "tolerations[0].key=platform",
            "affinity.nodeAffinity.a=b",
            "priorityClassName=system-cluster-critical",
            "podAnnotations.a=b",
        ];
        let settings = settings.map(|setting| format!("{part}.{setting}"));
        let objects = set(&settings.each_ref().map(String::as_str));
        let name = format!("croft-{part}");
        let pod = pod(&objects, &name);
        assert_eq!(pod["nodeSelector"], json!({ "pool": "platform" }));
        assert_eq!(pod["tolerations"], json!([{ "key": "platform" }]));
        assert_eq!(pod["affinity"], json!({ "nodeAffinity": { "a": "b" } }));
        assert_eq!(pod["priorityClassName"], "system-cluster-critical");
        let annotations = &one(&objects, "Deployment", &name).unwrap()["spec"]["template"]["metadata"]["annotations"];
        assert_eq!(annotations["a"], "b");
        assert!(annotations.as_object().unwrap().len() > 1, "its own are still there: {annotations}");
        let told = refusal(&[&format!("{part}.podAnnotations.croft\\.dev/settings=a")]);
        assert!(told.contains(&format!("/{part}/podAnnotations/croft.dev~1settings")), "{told}");
    }
}

#[test]
fn a_load_balancer_is_made_as_the_platform_wants_it() {
    let objects = set(&[
        "front.service.type=LoadBalancer",
        "front.service.annotations.a=b",
        "front.service.loadBalancerClass=example.com/internal",
        "front.service.loadBalancerSourceRanges={203.0.113.0/24}",
    ]);
    let service = one(&objects, "Service", "croft-front").unwrap();
    assert_eq!(service["metadata"]["annotations"], json!({ "a": "b" }));
    assert_eq!(service["spec"]["loadBalancerClass"], "example.com/internal");
    assert_eq!(service["spec"]["loadBalancerSourceRanges"], json!(["203.0.113.0/24"]));
    let internal = one(&objects, "Service", "croft-front-internal").unwrap();
    assert_eq!(internal["spec"]["type"], Value::Null, "the operator's way in stays within the cluster");
    assert!(refusal(&["front.service.loadBalancerSourceRanges={everyone}"]).contains("/front/service"));
    for (kind, setting) in [
        ("ClusterIP", "loadBalancerClass=example.com/internal"),
        ("NodePort", "loadBalancerSourceRanges={203.0.113.0/24}"),
        ("ClusterIP", "nodePorts.http=30080"),
    ] {
        let settings = [
            &format!("front.service.type={kind}"),
            "front.service.nodePorts.grpc=0",
            "front.service.nodePorts.http=0",
            &format!("front.service.{setting}"),
        ];
        let told = refusal(&settings);
        let value = setting.split('=').next().unwrap().replace('.', "/");
        assert!(told.contains(&format!("/front/service/{value}")), "{told}");
    }
}

#[test]
fn authorities_of_the_stores_reach_whoever_connects_to_them() {
    let objects =
        set(&["front.postgres.ca.configMap=database", "front.redis.ca.secret=redis", "front.redis.ca.key=root.pem"]);
    let pod = pod(&objects, "croft-front");
    let volume = |name: &str| pod["volumes"].as_array().unwrap().iter().find(|volume| volume["name"] == name).unwrap();
    let item = |key: &str| json!([{ "key": key, "path": "ca.crt" }]);
    assert_eq!(volume("postgres-ca")["configMap"], json!({ "name": "database", "items": item("ca.crt") }));
    assert_eq!(volume("redis-ca")["secret"]["secretName"], "redis");
    assert_eq!(volume("redis-ca")["secret"]["items"], item("root.pem"));
    for (container, names) in [
        (&pod["initContainers"][0], &["PGSSLROOTCERT"][..]),
        (&pod["containers"][0], &["PGSSLROOTCERT", "CROFT_REDIS_CA"]),
    ] {
        let told = |name: &str| container["env"].as_array().unwrap().iter().find(|told| told["name"] == name).cloned();
        assert_eq!(told("PGSSLMODE").unwrap()["value"], "verify-full");
        for name in names {
            let path = told(name).unwrap()["value"].as_str().unwrap().to_owned();
            let folder = path.strip_suffix("/ca.crt").unwrap();
            let mounts = container["volumeMounts"].as_array().unwrap();
            assert!(mounts.iter().any(|mount| mount["mountPath"] == folder), "nothing is at {path}");
        }
    }
    assert_eq!(variable(&set(&[]), "croft-front", "PGSSLMODE"), None, "URLs speak for themselves");
    let both = refusal(&["front.postgres.ca.configMap=database", "front.postgres.ca.secret=database"]);
    assert!(both.contains("front.postgres.ca.configMap"), "{both}");
}

/// A URL counts for more than what the chart says beside it: with `require` the authorities would check nothing.
#[test]
fn authorities_that_a_url_leaves_unused_are_refused() {
    let ca = "front.postgres.ca.configMap=database";
    for name in ["url", "adminUrl"] {
        let url = |parameters: &str| format!("front.postgres.{name}=postgres://croft:secret@db/croft?{parameters}");
        let told = refusal(&[ca, &url("sslmode=require")]);
        assert!(told.contains(&format!("front.postgres.{name} says sslmode=require")), "{told}");
        assert!(!told.contains("secret@"), "{told}");
        refusal(&[ca, &url("application_name=x&ssl-mode=prefer")]);
        set(&[ca, &url("sslmode=verify-ca&application_name=x")]);
        set(&[&url("sslmode=require")]);
    }
}
