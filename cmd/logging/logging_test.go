package logging

import (
	"flag"
	"strings"
	"testing"
)

func TestTheFlagsDecideHowMuchIsLoggedAndInWhichForm(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string // of a warning; nothing with ""
		err  string
	}{
		{nil, `level=WARN msg=late`, ""},
		{[]string{"--log-format=json", "--log-level=warn"}, `"level":"WARN","msg":"late"`, ""},
		{[]string{"--log-level=error"}, "", ""},
		{[]string{"--log-level=loud"}, "", "--log-level"},
		{[]string{"--log-format=xml"}, "", "--log-format"},
	} {
		var f Flags
		set := flag.NewFlagSet("program", flag.ContinueOnError)
		f.Add(set)
		if err := set.Parse(c.args); err != nil {
			t.Fatal(err)
		}
		var out strings.Builder
		log, err := f.Logger(&out)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%q: %v, want %s in it", c.args, err, c.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", c.args, err)
			continue
		}
		log.Debug("early")
		log.Warn("late")
		if got := out.String(); !strings.Contains(got, c.want) || c.want == "" && got != "" || strings.Contains(got, "early") {
			t.Errorf("%q: logged %q, want %q", c.args, got, c.want)
		}
	}
}
