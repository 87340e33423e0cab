package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
)

// Cluster is where scenarios run: a command that answers kubectl's verbs.
type Cluster struct {
	Kubectl []string // "weft sandbox --name x", or "kubectl"
}

// Run runs one verb with stdin and returns what it printed. The error holds stderr.
func (c *Cluster) Run(ctx context.Context, stdin string, args ...string) (string, error) {
	argv := append(append([]string{}, c.Kubectl...), args...)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

// Result is what one request of the test application saw (testapp call).
type Result struct {
	Status  int                 `json:"status"`
	Version string              `json:"version"`
	Pod     string              `json:"pod"`
	Millis  float64             `json:"ms"`
	Headers map[string][]string `json:"headers"`
	Body    string              `json:"body"`
	Error   string              `json:"error"`
}

// Header returns the first value of a response header, in any case.
func (r Result) Header(name string) string {
	for k, v := range r.Headers {
		if strings.EqualFold(k, name) && len(v) > 0 {
			return v[0]
		}
	}
	return ""
}

// Seen decodes what the test application says it received.
func (r Result) Seen() (s struct {
	Path, Host, Method, Remote, Proto string
	Headers                           map[string][]string
}) {
	_ = json.Unmarshal([]byte(r.Body), &s) // an answer of the mesh itself is no JSON: everything stays empty
	return s
}

// Results of one call.
type Results []Result

// By counts results by a key.
func (rs Results) By(key func(Result) string) map[string]int {
	counts := map[string]int{}
	for _, r := range rs {
		counts[key(r)]++
	}
	return counts
}

// Versions counts results by the version that answered; "" when none did.
func (rs Results) Versions() map[string]int { return rs.By(func(r Result) string { return r.Version }) }

// Statuses counts results by HTTP status; 0 when there was no answer.
func (rs Results) Statuses() map[string]int {
	return rs.By(func(r Result) string { return fmt.Sprint(r.Status) })
}

// Call runs `testapp call` in a container of a pod ("deploy/client", "pod-name") and returns what each request saw.
func (c *Cluster) Call(ctx context.Context, namespace, from string, args ...string) (Results, error) {
	out, err := c.Run(ctx, "", append([]string{"-n", namespace, "exec", from, "-c", "app", "--", "testapp", "call"}, args...)...)
	if err != nil {
		return nil, err
	}
	var rs Results
	if err := json.Unmarshal([]byte(out), &rs); err != nil {
		return nil, fmt.Errorf("testapp call printed %q: %w", out, err)
	}
	return rs, nil
}
