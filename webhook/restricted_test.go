package webhook

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// Kubernetes: Pod Security Standards, "restricted", for what injection adds.
func TestWhatIsInjectedPassesPodSecurityRestricted(t *testing.T) {
	in := newInjector(t, Options{})
	files, err := filepath.Glob("testdata/*/in.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	seen := 0
	for _, file := range files {
		if filepath.Base(filepath.Dir(file)) == "tproxy" {
			continue // needs NET_RAW; the user is warned, see the golden
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		m, err := ReadManifest(file, text)
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range m.Workloads {
			before := w.Pod.DeepCopy()
			after, _, err := in.injectAs(w.Pod, "default", nil, w.owner())
			if err != nil {
				continue
			}
			seen++
			checkRestricted(t, w.String(), findProxy(after).SecurityContext)
			for _, v := range after.Spec.Volumes {
				if !slices.ContainsFunc(before.Spec.Volumes, func(o corev1.Volume) bool { return o.Name == v.Name }) &&
					v.Projected == nil && v.ConfigMap == nil && v.Secret == nil {
					t.Errorf("%s: volume %s is of a kind that may be refused", w, v.Name)
				}
			}
			if sc := after.Spec.SecurityContext; sc != nil {
				for _, s := range sc.Sysctls {
					if s.Name != "net.ipv4.ip_unprivileged_port_start" && before.Spec.SecurityContext == nil {
						t.Errorf("%s: sysctl %s", w, s.Name)
					}
				}
			}
			for _, p := range findProxy(after).Ports {
				if p.HostPort != 0 {
					t.Errorf("%s: host port %d", w, p.HostPort)
				}
			}
		}
	}
	if seen < 20 {
		t.Errorf("only %d pods were looked at", seen)
	}
}

func checkRestricted(t *testing.T, name string, sc *corev1.SecurityContext) {
	t.Helper()
	switch {
	case sc == nil:
		t.Errorf("%s: no security context", name)
	case sc.Privileged == nil || *sc.Privileged,
		sc.AllowPrivilegeEscalation == nil || *sc.AllowPrivilegeEscalation:
		t.Errorf("%s: may escalate", name)
	case sc.RunAsNonRoot == nil || !*sc.RunAsNonRoot, sc.RunAsUser == nil || *sc.RunAsUser == 0:
		t.Errorf("%s: may be root", name)
	case sc.Capabilities == nil || !slices.Equal(sc.Capabilities.Drop, []corev1.Capability{"ALL"}) || len(sc.Capabilities.Add) > 0:
		t.Errorf("%s: capabilities %+v", name, sc.Capabilities)
	case sc.SeccompProfile == nil || sc.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault:
		t.Errorf("%s: seccomp %+v", name, sc.SeccompProfile)
	case sc.ReadOnlyRootFilesystem == nil || !*sc.ReadOnlyRootFilesystem:
		t.Errorf("%s: writable root", name)
	}
}
