package cni_test

import (
	"debug/buildinfo"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/cni"
	"github.com/weft-mesh/weft/e2e/kit"
	"github.com/weft-mesh/weft/redirect"
)

func TestThePluginIsBuiltWithoutKubernetes(t *testing.T) {
	info, err := buildinfo.ReadFile(kit.Program(t, "weft-cni"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range info.Deps {
		if strings.HasPrefix(m.Path, "k8s.io/") || strings.HasPrefix(m.Path, "istio.io/") || strings.HasPrefix(m.Path, "sigs.k8s.io/") {
			t.Errorf("the plugin contains %s; it must stay small and start in milliseconds", m.Path)
		}
	}
}

func TestAnADDStartsNoProcessAndConnectsToNothing(t *testing.T) {
	n := newNode(t)
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("no strace on PATH to watch the plugin with")
	}
	pod := n.pod("cart", injected(redirect.Default()))
	log := filepath.Join(n.dir, "trace")
	out, err := n.exec("ADD", pod, fmt.Sprintf(`{"cniVersion":"1.1.0","name":"pods","type":"weft-cni","stateDir":%q,"runtimeConfig":{%q:%s}}`,
		n.stateDir(), cni.CapabilityAnnotations, mustJSON(pod.args.CapabilityArgs[cni.CapabilityAnnotations])),
		strace, "-f", "-qq", "-o", log, "-e", "trace=fork,vfork,clone,clone3,execve,connect", "-e", "signal=none", filepath.Join(n.path[1], "weft-cni"))
	if err != nil {
		t.Fatalf("ADD: %v: %s", err, out)
	}
	if drift := pod.rules(t, redirect.Default()); len(drift) > 0 {
		t.Errorf("rules: %q", drift)
	}
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	for i, line := range strings.Split(strings.TrimSpace(string(text)), "\n") {
		thread := strings.Contains(line, "clone") && (strings.Contains(line, "CLONE_THREAD") || strings.Contains(line, "resumed"))
		if itself := i == 0 && strings.Contains(line, "execve("); !itself && !thread {
			t.Errorf("the plugin calls %s", line)
		}
	}
}
