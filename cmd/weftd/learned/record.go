package learned

import (
	"bytes"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/weft-mesh/weft/envoy"
)

// Shards is how many texts the record is in. What one workload learned makes one of them change, and each is read as a whole by every replica.
const Shards = 16

const (
	maxLength = 512       // of a name
	maxNames  = 48 << 10  // bytes of one workload and type: a thousand usual names. An app that goes through more takes no room from others
	maxText   = 768 << 10 // bytes of a shard; an object of the API server may have 1 MiB

	format = 1
)

// shardOf says in which text a workload is.
func shardOf(workload string) int {
	h := fnv.New32a()
	h.Write([]byte(workload))
	return int(h.Sum32() % Shards)
}

// entry is what is known of one workload.
type entry struct {
	demand *envoy.Demand
	seen   time.Time // when it had a pod, to some hours
}

// document is the text of a shard.
type document struct {
	Format    int             `json:"format"`
	Workloads []workloadLines `json:"workloads"`
}

type workloadLines struct {
	Workload string    `json:"workload"`
	Seen     time.Time `json:"seen"`
	Hosts    []string  `json:"hosts,omitempty"`
	Clusters []string  `json:"clusters,omitempty"`
}

// decode reads the text of a shard; none is an empty one. What is wrong in single workloads is left out.
func decode(text []byte) (map[string]entry, error) {
	if len(text) == 0 {
		return nil, nil
	}
	var doc document
	if err := json.Unmarshal(text, &doc); err != nil {
		return nil, fmt.Errorf("not a record of what workloads have asked for: %w", err)
	}
	if doc.Format != format {
		return nil, fmt.Errorf("a record of format %d, and this version of weftd knows format %d", doc.Format, format)
	}
	entries := make(map[string]entry, len(doc.Workloads))
	for _, w := range doc.Workloads {
		if !properWorkload(w.Workload) {
			continue
		}
		d := &envoy.Demand{Workload: w.Workload}
		d = d.With(envoy.VirtualHost, clip(w.Hosts)...).With(envoy.Cluster, clip(w.Clusters)...)
		entries[w.Workload] = entry{d, w.Seen}
	}
	return entries, nil
}

func properWorkload(name string) bool {
	ns, account, _ := strings.Cut(name, "/")
	return len(validation.IsDNS1123Label(ns)) == 0 && len(validation.IsDNS1123Subdomain(account)) == 0
}

// clip leaves out names that no proxy could have asked for, and those that are too many.
func clip(names []string) []string {
	room := maxNames
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool {
		if n == "" || len(n) > min(maxLength, room) || !utf8.ValidString(n) {
			return true
		}
		room -= len(n)
		return false
	})
}

// encode writes a shard, a workload a line, sorted: equal entries give equal texts. When it gets too long those are left out that had a pod the longest time ago.
func encode(entries map[string]entry) (text []byte, dropped int) {
	type line struct {
		text []byte
		seen time.Time
		name string
	}
	var lines []line
	size := 0
	for name, e := range entries {
		if e.demand.Len() == 0 {
			continue
		}
		var b bytes.Buffer
		j := json.NewEncoder(&b)
		j.SetEscapeHTML(false)
		// It fails for nothing that is in these types, and a year is not above 9999.
		_ = j.Encode(workloadLines{name, e.seen.UTC().Truncate(time.Second), clip(e.demand.Names[envoy.VirtualHost]), clip(e.demand.Names[envoy.Cluster])})
		lines = append(lines, line{bytes.TrimSuffix(b.Bytes(), []byte("\n")), e.seen, name})
		size += b.Len() + 1
	}
	if size > maxText {
		slices.SortFunc(lines, func(a, b line) int {
			if c := a.seen.Compare(b.seen); c != 0 {
				return c
			}
			return strings.Compare(a.name, b.name)
		})
		for size > maxText {
			size -= len(lines[dropped].text) + 2
			dropped++
		}
		lines = lines[dropped:]
	}
	slices.SortFunc(lines, func(a, b line) int { return strings.Compare(a.name, b.name) })
	var out bytes.Buffer
	fmt.Fprintf(&out, "{\"format\": %d, \"workloads\": [", format)
	for i, l := range lines {
		if i > 0 {
			out.WriteByte(',')
		}
		out.WriteByte('\n')
		out.Write(l.text)
	}
	out.WriteString("\n]}\n")
	return out.Bytes(), dropped
}

// sortedKeys of a map, for logs and tests.
func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
