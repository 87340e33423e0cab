package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
)

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

// Failures counts what was not answered 200, by status and error.
func (rs Results) Failures() map[string]int {
	counts := rs.By(func(r Result) string {
		if r.Status == 200 {
			return ""
		}
		return strings.TrimSpace(fmt.Sprintf("%d %s %s", r.Status, r.Error, r.Body))
	})
	delete(counts, "")
	return counts
}

// ReadResults decodes what `testapp call` printed.
func ReadResults(out string) (Results, error) {
	var rs Results
	if err := json.Unmarshal([]byte(out), &rs); err != nil {
		return nil, fmt.Errorf("testapp call printed %.300q: %w", out, err)
	}
	return rs, nil
}

// Call runs `testapp call` in a container of a pod ("deploy/client", "pod-name") and returns what each request saw.
func (c *Cluster) Call(ctx context.Context, namespace, from string, args ...string) (Results, error) {
	out, err := c.Run(ctx, "", append([]string{"-n", namespace, "exec", from, "-c", "app", "--", "testapp", "call"}, args...)...)
	if err != nil {
		return nil, err
	}
	return ReadResults(out)
}
