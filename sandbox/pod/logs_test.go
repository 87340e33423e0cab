package pod

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weft-mesh/weft/e2e/kit"
)

func TestLogsTailSinceAndTimestamps(t *testing.T) {
	n := newNode(t, nil)
	pod := n.start(`{spec: {restartPolicy: Never, containers: [{name: app, image: sh, args: [-c, "echo a; echo b >&2; echo c; printf d"]}]}}`)
	n.until(pod, "end", podEnded)
	four := n.logs(pod, "app", LogOptions{})
	if len(four) != len("a\nb\nc\nd\n") {
		t.Errorf("log: %q", four)
	}
	two := int64(2)
	if got := n.logs(pod, "app", LogOptions{Tail: &two}); strings.Count(got, "\n") != 2 || !strings.HasSuffix(four, got) {
		t.Errorf("last two lines: %q of %q", got, four)
	}
	none := int64(0)
	equal(t, "last no lines", n.logs(pod, "app", LogOptions{Tail: &none}), "")
	equal(t, "lines of the future", n.logs(pod, "app", LogOptions{Since: time.Now().Add(time.Hour)}), "")
	for line := range strings.Lines(n.logs(pod, "app", LogOptions{Timestamps: true})) {
		at, _, _ := strings.Cut(line, " ")
		if when, err := time.Parse(time.RFC3339Nano, at); err != nil || time.Since(when) > time.Minute {
			t.Errorf("line without time: %q", line)
		}
	}
	var out bytes.Buffer
	if err := n.Logs(t.Context(), pod.UID, "app", LogOptions{Previous: true}, &out); err == nil || !strings.Contains(err.Error(), `previous terminated container "app" in pod "web" not found`) {
		t.Errorf("previous: %v", err)
	}
	if err := n.Logs(t.Context(), pod.UID, "app", LogOptions{Follow: true}, &out); err != nil {
		t.Errorf("following a container that has ended: %v", err)
	}
}

func TestLogsFollowUntilTheContainerEnds(t *testing.T) {
	n := newNode(t, nil)
	pod := n.start(`
spec:
  restartPolicy: Never
  containers:
  - {name: app, image: sh, args: [-c, "echo one; while ! test -e /v/go; do sleep 0.02; done; echo two"], volumeMounts: [{name: v, mountPath: /v}]}
  volumes: [{name: v, emptyDir: {}}]
`)
	n.until(pod, "ready", ready)
	var out kit.Output
	done := make(chan error, 1)
	go func() { done <- n.Logs(context.Background(), pod.UID, "app", LogOptions{Follow: true}, &out) }()
	eventually(t, "the first line", func() bool { return out.String() == "one\n" })
	// The container may end under this command.
	if _, err := n.Exec(t.Context(), pod.UID, "app", []string{"touch", "/v/go"}, nil, nil, nil); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	equal(t, "all", out.String(), "one\ntwo\n")
}

func TestLogFileIsTurnedAndFollowedAcross(t *testing.T) {
	l, err := openLog(t.TempDir(), 0)
	if err != nil {
		t.Fatal(err)
	}
	var out kit.Output
	done := make(chan error, 1)
	go func() { done <- l.stream(context.Background(), LogOptions{Follow: true}, &out) }()
	line := strings.Repeat("x", 1<<20)
	var want strings.Builder
	for i := range 25 {
		text := fmt.Sprintf("%d %s", i, line)
		l.write("stdout", "F", []byte(text))
		want.WriteString(text + "\n")
		eventually(t, "the follower", func() bool { return len(out.String()) == want.Len() })
	}
	l.end()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if out.String() != want.String() {
		t.Error("the follower lost something")
	}
	files, err := filepath.Glob(l.path + "*")
	if err != nil || len(files) != 2 {
		t.Fatalf("files: %v (%v)", files, err)
	}
	for _, f := range files {
		if info, err := os.Stat(f); err != nil || info.Size() > logLimit+2<<20 {
			t.Errorf("%s: %v, %v", f, info.Size(), err)
		}
	}
}

func TestLongLinesComeOutInOnePiece(t *testing.T) {
	n := newNode(t, nil)
	pod := n.start(`{spec: {restartPolicy: Never, containers: [{name: app, image: sh, args: [-c, "head -c 50000 /dev/zero | tr '\\0' y; echo; echo end"]}]}}`)
	n.until(pod, "end", podEnded)
	equal(t, "log", n.logs(pod, "app", LogOptions{}) == strings.Repeat("y", 50000)+"\nend\n", true)
}

func TestOnlyTheLastTwoInstancesLogsAreKept(t *testing.T) {
	dir := t.TempDir()
	for i := range int32(5) {
		l, err := openLog(dir, i)
		if err != nil {
			t.Fatal(err)
		}
		l.end()
	}
	files, err := filepath.Glob(dir + "/*")
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "files", len(files), 2)
}
