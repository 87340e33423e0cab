package pod

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func (n *node) setConfigMap(name string, data map[string]string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.configMaps["default/"+name] = &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Data: data, BinaryData: map[string][]byte{}}
}

func (n *node) setSecret(name string, data map[string][]byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.secrets["default/"+name] = &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Data: data}
}

func TestVolumesAreMountedAsKubernetesDoes(t *testing.T) {
	n := newNode(t, nil)
	n.setConfigMap("settings", map[string]string{"a": "A", "b": "B"})
	n.setSecret("key", map[string][]byte{"tls.key": []byte("K")})
	host := t.TempDir()
	if err := os.WriteFile(filepath.Join(host, "host-file"), []byte("H"), 0o644); err != nil {
		t.Fatal(err)
	}
	pod := n.start(`
metadata: {labels: {app: web, version: v1}, annotations: {note: "two words"}}
spec:
  containers:
  - name: app
    image: sh
    args: [-c, "exec sleep 1000"]
    resources: {limits: {cpu: 1500m, memory: 64Mi}}
    env: [{name: SUB, value: one}]
    volumeMounts:
    - {name: settings, mountPath: /etc/settings}
    - {name: settings, mountPath: /single/file, subPath: b}
    - {name: key, mountPath: /var/run/secrets/key, readOnly: true}
    - {name: info, mountPath: /info}
    - {name: all, mountPath: /all}
    - {name: host, mountPath: /host, readOnly: true}
    - {name: memory, mountPath: /dev/shm}
    - {name: scratch, mountPath: /scratch}
    - {name: scratch, mountPath: /scratch/inner, subPath: inner/dir}
    - {name: scratch, mountPath: /expr, subPathExpr: x/$(SUB)}
    - {name: made, mountPath: /made}
  volumes:
  - {name: settings, configMap: {name: settings}}
  - {name: key, secret: {secretName: key, defaultMode: 0400, items: [{key: tls.key, path: deep/er/key.pem}]}}
  - name: info
    downwardAPI:
      items:
      - {path: labels, fieldRef: {fieldPath: metadata.labels}}
      - {path: note, fieldRef: {fieldPath: "metadata.annotations['note']"}}
      - {path: cpu, resourceFieldRef: {containerName: app, resource: limits.cpu}}
      - {path: memory, resourceFieldRef: {containerName: app, resource: limits.memory, divisor: 1Mi}}
  - name: all
    projected:
      defaultMode: 0440
      sources:
      - configMap: {name: settings, items: [{key: a, path: a.txt, mode: 0400}]}
      - secret: {name: key}
      - configMap: {name: absent, optional: true}
      - downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}
  - {name: host, hostPath: {path: ` + host + `, type: Directory}}
  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
  - {name: scratch, emptyDir: {}}
  - {name: made, hostPath: {path: ` + host + `/new/dir, type: DirectoryOrCreate}}
`)
	n.until(pod, "ready", ready)
	for _, c := range []struct{ command, want string }{
		{"cat /etc/settings/a /etc/settings/b", "AB"},
		{"readlink /etc/settings/a", "..data/a"},
		{"stat -L -c %a,%u /etc/settings/a", "644,0"},
		{"cat /single/file", "B"},
		{"cat /var/run/secrets/key/deep/er/key.pem; stat -L -c ,%a /run/secrets/key/deep/er/key.pem", "K,400"},
		{"cat /info/labels", "app=\"web\"\nversion=\"v1\""},
		{"cat /info/note", "two words"},
		{"cat /info/cpu", "2"},
		{"cat /info/memory", "64"},
		{"cat /all/a.txt /all/tls.key /all/name; stat -L -c ,%a /all/a.txt", "AKweb,400"},
		{"stat -L -c %a /all/name", "440"},
		{"touch /etc/settings/x /all/x /host/x 2>/dev/null || echo refused", "refused"},
		{"cat /host/host-file", "H"},
		{"stat -f -c %T /dev/shm", "tmpfs"},
		{"head -c 2000000 /dev/zero > /dev/shm/x 2>/dev/null || echo full", "full"},
		{"stat -c %a /scratch", "777"},
		{"echo I > /scratch/inner/f; cat /scratch/inner/f", "I"},
		{"ls /scratch; ls /scratch/x", "inner\nx\none"},
		{"touch /made/x && echo ok", "ok"},
	} {
		equal(t, c.command, n.sh(pod, "app", c.command), c.want)
	}
	if _, err := os.Stat(filepath.Join(host, "new/dir/x")); err != nil {
		t.Error(err)
	}
	// The whole pod goes, the host's directory stays.
	if err := n.Stop(t.Context(), pod.UID, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(host, "host-file")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(n.path("pods", string(pod.UID))); !os.IsNotExist(err) {
		t.Errorf("files of a stopped pod: %v", err)
	}
}

func TestChangedConfigMapAppearsAllAtOnceWithoutRestart(t *testing.T) {
	n := newNode(t, nil)
	n.setConfigMap("settings", map[string]string{"a": "1", "b": "1", "gone": "x"})
	pod := n.start(`
metadata: {labels: {app: web}}
spec:
  containers:
  - name: app
    image: sh
    args: [-c, "exec sleep 1000"]
    volumeMounts: [{name: settings, mountPath: /settings}, {name: info, mountPath: /info}, {name: settings, mountPath: /pinned, subPath: a}]
  volumes:
  - {name: settings, configMap: {name: settings}}
  - {name: info, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
`)
	n.until(pod, "ready", ready)
	before := n.sh(pod, "app", "readlink /settings/..data")
	n.Refresh()
	equal(t, "version after a refresh without a change", n.sh(pod, "app", "readlink /settings/..data"), before)

	n.setConfigMap("settings", map[string]string{"a": "2", "b": "2"})
	n.Refresh()
	equal(t, "content", n.sh(pod, "app", "cat /settings/a /settings/b"), "22")
	if after := n.sh(pod, "app", "readlink /settings/..data"); after == before || !strings.HasPrefix(after, "..20") {
		t.Errorf("..data before %s, after %s", before, after)
	}
	equal(t, "names", n.sh(pod, "app", "ls -A /settings | grep -v '^[.][.]2'"), "..data\na\nb")
	equal(t, "a subPath mount does not follow", n.sh(pod, "app", "cat /pinned"), "1")

	labelled := pod.DeepCopy()
	labelled.Labels = map[string]string{"app": "other"}
	if err := n.Update(labelled); err != nil {
		t.Fatal(err)
	}
	equal(t, "labels", n.sh(pod, "app", "cat /info/labels"), `app="other"`)
}

func TestTokenIsReplacedBeforeItExpires(t *testing.T) {
	var count atomic.Int32
	n := newNode(t, func(c *Config) {
		c.Token = func(ctx context.Context, pod *corev1.Pod, audience string, ttl time.Duration) (string, time.Time, error) {
			return fmt.Sprintf("%s/%s/%s/%d", pod.Name, audience, ttl, count.Add(1)), time.Now().Add(2 * time.Second), nil
		}
	})
	pod := n.start(`
spec:
  containers:
  - name: app
    image: sh
    args: [-c, "exec sleep 1000"]
    securityContext: {runAsUser: 1337}
    volumeMounts: [{name: token, mountPath: /var/run/secrets/tokens}]
  volumes:
  - name: token
    projected: {sources: [{serviceAccountToken: {path: istio-token, audience: istio-ca, expirationSeconds: 43200}}]}
`)
	n.until(pod, "ready", ready)
	begin := time.Now()
	equal(t, "token", n.sh(pod, "app", "cat /var/run/secrets/tokens/istio-token"), "web/istio-ca/12h0m0s/1")
	equal(t, "mode and owner", n.sh(pod, "app", "stat -L -c %a,%u /var/run/secrets/tokens/istio-token"), "600,1337")
	n.Refresh()
	equal(t, "token after a refresh", n.sh(pod, "app", "cat /var/run/secrets/tokens/istio-token"), "web/istio-ca/12h0m0s/1")
	eventually(t, "the second token", func() bool {
		return n.sh(pod, "app", "cat /var/run/secrets/tokens/istio-token") == "web/istio-ca/12h0m0s/2"
	})
	if d := time.Since(begin); d > 2*time.Second {
		t.Errorf("replaced after %v, when it had expired", d)
	}
}

func TestTokenFileBelongsToThoseWhoNeedIt(t *testing.T) {
	n := newNode(t, func(c *Config) {
		c.Token = func(context.Context, *corev1.Pod, string, time.Duration) (string, time.Time, error) {
			return "token", time.Now().Add(time.Hour), nil
		}
	})
	for _, c := range []struct{ name, security, other, want string }{
		{"users", "{}", "{runAsUser: 7}", "644,0,0"},
		{"group", "{fsGroup: 55}", "{runAsUser: 7}", "640,0,55"},
		{"same", "{runAsUser: 9}", "{}", "600,9,0"},
	} {
		pod := n.start(`
metadata: {name: ` + c.name + `}
spec:
  securityContext: ` + c.security + `
  containers:
  - name: app
    image: sh
    args: [-c, "exec sleep 1000"]
    volumeMounts: [{name: token, mountPath: /t}]
  - {name: other, image: sh, args: [-c, "exec sleep 1000"], securityContext: ` + c.other + `}
  volumes: [{name: token, projected: {sources: [{serviceAccountToken: {path: token}}]}}]
`)
		n.until(pod, "ready", ready)
		equal(t, c.name, n.sh(pod, "app", "stat -L -c %a,%u,%g /t/token"), c.want)
	}
}

func TestMissingConfigMapHoldsThePodUntilItExists(t *testing.T) {
	n := newNode(t, nil)
	pod := n.start(`
spec:
  containers: [{name: app, image: sh, args: [-c, "exec sleep 1000"], volumeMounts: [{name: v, mountPath: /v}]}]
  volumes: [{name: v, configMap: {name: late}}]
`)
	equal(t, "event", n.untilEvent("FailedMount"), `Warning FailedMount MountVolume.SetUp failed for volume "v" : configmap "late" not found`)
	n.setConfigMap("late", map[string]string{"a": "here"})
	n.until(pod, "ready", ready)
	equal(t, "content", n.sh(pod, "app", "cat /v/a"), "here")
}

func TestLinkInAVolumeCannotReachTheHost(t *testing.T) {
	n := newNode(t, nil)
	outside := t.TempDir()
	pod := n.start(`
spec:
  initContainers:
  - {name: evil, image: sh, args: [-c, "ln -s ` + outside + ` /v/link"], volumeMounts: [{name: v, mountPath: /v}]}
  containers:
  - name: nested
    image: sh
    args: [-c, "exec sleep 1000"]
    volumeMounts: [{name: v, mountPath: /v}, {name: w, mountPath: /v/link/inner}]
  - name: sub
    image: sh
    args: [-c, "exec sleep 1000"]
    volumeMounts: [{name: v, mountPath: /v, subPath: link/inner}]
  volumes: [{name: v, emptyDir: {}}, {name: w, emptyDir: {}}]
`)
	n.untilEvent("volume w: mountPath /v/link/inner: mkdir /v/link: file exists")
	s := n.until(pod, "refusal of the subPath", func(s corev1.PodStatus) bool {
		return len(s.ContainerStatuses) == 2 && s.ContainerStatuses[1].State.Waiting != nil && s.ContainerStatuses[1].State.Waiting.Reason == "CreateContainerConfigError"
	})
	if message := s.ContainerStatuses[1].State.Waiting.Message; !strings.Contains(message, "failed to prepare subPath") {
		t.Errorf("message: %s", message)
	}
	entries, err := os.ReadDir(outside)
	if err != nil || len(entries) != 0 {
		t.Errorf("the host's directory has %v (%v)", entries, err)
	}
}

func TestMountPathInsideTheHostsDirectoriesIsExplained(t *testing.T) {
	n := newNode(t, nil)
	pod := n.start(`
spec:
  restartPolicy: Never
  containers: [{name: app, image: sh, args: [-c, "true"], volumeMounts: [{name: v, mountPath: /usr/share/weft-test-nothing}]}]
  volumes: [{name: v, emptyDir: {}}]
`)
	s := n.until(pod, "failure", func(s corev1.PodStatus) bool { return s.Phase == corev1.PodFailed })
	terminated := s.ContainerStatuses[0].State.Terminated
	equal(t, "reason", terminated.Reason, "StartError")
	if !strings.Contains(terminated.Message, "volume v: mountPath /usr/share/weft-test-nothing") {
		t.Errorf("message: %s", terminated.Message)
	}
}

func TestUnusableVolumesSayWhy(t *testing.T) {
	n := newNode(t, nil)
	for name, c := range map[string]struct{ volume, want string }{
		"nfs":    {`nfs: {server: x, path: /x}`, "this kind of volume is not available here"},
		"nodir":  {`hostPath: {path: /etc/hostname, type: Directory}`, "hostPath type check failed: /etc/hostname is not a directory"},
		"secret": {`secret: {secretName: none}`, `secret "none" not found`},
		"key":    {`configMap: {name: settings, items: [{key: nokey, path: x}]}`, "references non-existent key nokey of ConfigMap default/settings"},
		"path":   {`configMap: {name: settings, items: [{key: a, path: ../x}]}`, "must be relative"},
		"token":  {`projected: {sources: [{serviceAccountToken: {path: t}}]}`, "service-account tokens are not available"},
		"image":  {`image: {reference: "example.com/none:1"}`, "is not mapped to a program"},
	} {
		n.setConfigMap("settings", map[string]string{"a": "1"})
		n.start(`{metadata: {name: ` + name + `}, spec: {containers: [{name: app, image: sh}], volumes: [{name: v, ` + c.volume + `}]}}`)
		n.untilEvent(c.want)
	}
}

func TestImageVolumeShowsTheProgram(t *testing.T) {
	n := newNode(t, nil)
	pod := n.start(`
spec:
  containers: [{name: app, image: sh, args: [-c, "exec sleep 1000"], volumeMounts: [{name: tools, mountPath: /tools}]}]
  volumes: [{name: tools, image: {reference: pinned}}]
`)
	n.until(pod, "ready", ready)
	equal(t, "program of the image", n.sh(pod, "app", "/tools/sh -c 'echo runs'; touch /tools/sh 2>/dev/null || echo read-only"), "runs\nread-only")
}
