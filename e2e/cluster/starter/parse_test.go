package main

import (
	"reflect"
	"strings"
	"testing"
)

func equal(t *testing.T, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %#v\nwant %#v", got, want)
	}
}

func TestStatWithSpacesAndBracketsInTheName(t *testing.T) {
	got, err := parseStat("42 (a (b) c) S 7 42 42 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 123456 0 0\n")
	equal(t, err, nil)
	equal(t, got, stat{state: 'S', parent: 7, started: 123456})
}

func TestMountsAreTakenDownFromInside(t *testing.T) {
	info := `36 35 0:30 / /run/croft-1/a rw - tmpfs tmpfs rw
37 35 0:31 / /run/croft-1/a/b\040c rw - tmpfs tmpfs rw
38 35 0:32 / /run/croft-12/a rw - tmpfs tmpfs rw
`
	equal(t, mountsUnder(info, "/run/croft-1", "/elsewhere"), []string{"/run/croft-1/a/b c", "/run/croft-1/a"})
}

func TestFirewallKeepsForeignRules(t *testing.T) {
	before := `*nat
:PREROUTING ACCEPT [1:2]
:DOCKER - [0:0]
:KUBE-SERVICES - [0:0]
[1:60] -A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
[0:0] -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
[0:0] -A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -j KUBE-SVC-X
[0:0] -A POSTROUTING -j CILIUM_POST_nat
COMMIT
`
	after := `*nat
:PREROUTING ACCEPT [1:2]
:DOCKER - [0:0]
[0:0] -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
COMMIT
`
	got, changed := withoutChains(before)
	equal(t, got, after)
	equal(t, changed, true)
	_, changed = withoutChains(after)
	equal(t, changed, false)
}

func TestLddNamesLibrariesAndTheLoader(t *testing.T) {
	got, err := parseLdd("\tlinux-vdso.so.1 (0x7ffc)\n\tlibm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x7f1)\n\t/lib64/ld-linux-x86-64.so.2 (0x7f2)\n")
	equal(t, err, nil)
	equal(t, got, []string{"/lib/x86_64-linux-gnu/libm.so.6", "/lib64/ld-linux-x86-64.so.2"})
	_, err = parseLdd("\tlibssl.so.3 => not found\n")
	equal(t, err != nil, true)
}

func TestResolversOfTheMachineAloneAreLeftOut(t *testing.T) {
	equal(t, reachableResolvers("# comment\nnameserver 127.0.0.53\nnameserver 192.0.2.1\nsearch example.com\n"), "nameserver 192.0.2.1\n")
	equal(t, forward(reachableResolvers("nameserver 127.0.0.1\n")), "")
}

func TestTheNameInAYAML(t *testing.T) {
	equal(t, nameOf("kind: X\nmetadata:\n  annotations:\n    name: no\n  name: things.example.com\nspec:\n  name: no\n"), "things.example.com")
	equal(t, nameOf("kind: X\nspec:\n  name: no\n"), "")
}

func TestMissingPackages(t *testing.T) {
	got, err := missingPackages([]string{"services", "policy"}, func(pattern string) bool { return strings.Contains(pattern, "redis") })
	equal(t, err, nil)
	equal(t, got, []string{"clang-19", "llvm-19", "postgresql"})
	_, err = missingPackages([]string{"wishes"}, func(string) bool { return true })
	equal(t, err != nil, true)
}

func TestRoutingRulesToRestore(t *testing.T) {
	equal(t, missingLines("0:\tfrom all lookup local\n", "100:\tfrom all lookup local\n"), []string{"0:\tfrom all lookup local"})
	equal(t, ruleWords("0:\tfrom all lookup local"), []string{"0", "from", "all", "lookup", "local"})
}

func TestQuoting(t *testing.T) {
	equal(t, quote("a'b $c"), `'a'\''b $c'`)
}

func TestOnlyOurNotesOfNetworks(t *testing.T) {
	equal(t, ofOurNetworks([]byte(`{"networkName":"croft"}`)), true)
	equal(t, ofOurNetworks([]byte(`{"networkName":"bridge"}`)), false)
}

func TestInside(t *testing.T) {
	equal(t, inside("/a/b/c", "/a/b"), true)
	equal(t, inside("/a/bc", "/a/b"), false)
}
