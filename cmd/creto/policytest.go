package main

import (
	"fmt"
	"io"
	"path/filepath"
	"regexp"

	"github.com/spf13/cobra"

	"creto.dev"
	"creto.dev/authz/localauthz"
	"creto.dev/fault"
)

// policyDir returns the directory of policies that a command is about: the one
// that is named, or the node's.
func (a *app) policyDir(args []string) string {
	if len(args) > 0 {
		return args[0]
	}
	return filepath.Join(a.dataDir, "policies")
}

// home is the tenant whose policies are in a directory itself.
func (a *app) home() string {
	if a.tenant != "" {
		return a.tenant
	}
	return creto.DefaultTenant
}

// policyTests is what policy test prints as JSON.
type policyTests struct {
	OK      bool                    `json:"ok"`
	Version creto.Digest            `json:"policy_version"`
	Passed  int                     `json:"passed"`
	Failed  int                     `json:"failed"`
	Skipped int                     `json:"skipped"` // by --run
	Cases   []localauthz.TestResult `json:"cases"`
	// Coverage is there with --coverage.
	Coverage []localauthz.Covered `json:"coverage,omitempty"`
}

func (a *app) policyTestCommand() *cobra.Command {
	var only string
	var verbose, coverage bool
	c := &cobra.Command{
		Use:   "test [DIR]",
		Short: "Run the test cases of a directory of policies, without a node",
		Long: `Run the test cases of a directory of policies, without a node. Cases are written
beside the policies, in NAME_test.yaml beside NAME.cedar. Each is decided on by
all policies of the directory, as a node with them would; a chain's delegations
include everything, and there are no quotas. What fails is shown as a difference
and explained. Exit code 1 means that a case failed, or that there is none.

  principals:
    human:alice: [staff]               # groups; who is not named is in none
  chain: [human:alice, agent:shop-bot] # for cases that do not name their own
  cases:
  - name: small refunds need nobody
    action: http_request
    resource: http://shop.test/refunds
    context: {method: POST, body: {amount: 50}}
    expect: allow                      # or deny, or requires_oversight
    policy: shop/small                 # optional: one that must decide
  - name: large ones need finance
    action: http_request
    resource: http://shop.test/refunds
    context: {method: POST, body: {amount: 500}}
    expect: requires_oversight
    asks: finance                      # optional: whom it must ask`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			const op fault.Op = "creto.policyTest"
			match, err := regexp.Compile(only)
			if err != nil {
				return fault.New(op, fault.InvalidArgument, "--run %q is no regular expression: %v", only, err)
			}
			dir := a.policyDir(args)
			p, err := localauthz.ReadPolicies(dir, a.home())
			if err != nil {
				return err
			}
			files, err := p.Cases()
			if err != nil {
				return err
			}
			out := runCases(p, files, match)
			if len(out.Cases) == 0 {
				if out.Skipped > 0 {
					return fault.New(op, fault.NotFound, "none of the %d cases in %s is called like %q", out.Skipped, dir, only)
				}
				return fault.New(op, fault.NotFound, "there are no cases in %s; write NAME_test.yaml beside NAME.cedar, as %s shows", dir, "creto policy test --help")
			}
			if coverage {
				out.Coverage = p.Coverage(out.Cases)
			}
			if err := a.print(out, func(w io.Writer) { printTests(w, out, verbose) }); err != nil {
				return err
			}
			if !out.OK {
				return exitError(exitFailure)
			}
			return nil
		},
	}
	c.Flags().StringVar(&only, "run", "", "only cases whose name matches a regular `expression`")
	c.Flags().BoolVarP(&verbose, "verbose", "v", false, "also list the cases that pass")
	c.Flags().BoolVar(&coverage, "coverage", false, "list the policies that no case made decide")
	return c
}

func runCases(p *localauthz.Policies, files []localauthz.CaseFile, match *regexp.Regexp) policyTests {
	out := policyTests{Version: p.Version(), Cases: []localauthz.TestResult{}}
	for _, f := range files {
		for _, c := range f.Cases {
			if !match.MatchString(c.Name) {
				out.Skipped++
				continue
			}
			result := p.Test(f.Name, c)
			if result.OK {
				out.Passed++
			} else {
				out.Failed++
			}
			out.Cases = append(out.Cases, result)
		}
	}
	out.OK = out.Failed == 0
	return out
}

func printTests(w io.Writer, out policyTests, verbose bool) {
	for _, c := range out.Cases {
		switch {
		case !c.OK:
			fmt.Fprintf(w, "FAIL  %s:%d  %s\n", oneLine(c.File), c.Line, oneLine(c.Name))
			for _, d := range c.Wrong {
				fmt.Fprintf(w, "    - %s: %s\n    + %s: %s\n", d.Field, oneLine(d.Want), d.Field, oneLine(d.Got))
			}
			if len(c.Explanation.Principals) > 0 {
				printExplanation(w, c.Explanation)
				fmt.Fprintln(w)
			}
		case verbose:
			fmt.Fprintf(w, "ok    %s:%d  %s\n", oneLine(c.File), c.Line, oneLine(c.Name))
		}
	}
	skipped := ""
	if out.Skipped > 0 {
		skipped = fmt.Sprintf(", %d skipped", out.Skipped)
	}
	if out.OK {
		fmt.Fprintf(w, "OK: %s passed%s\n", plural(out.Passed, "case"), skipped)
	} else {
		fmt.Fprintf(w, "FAILED: %d of %s%s\n", out.Failed, plural(len(out.Cases), "case"), skipped)
	}
	if out.Coverage != nil {
		printCoverage(w, out.Coverage)
	}
}

func printCoverage(w io.Writer, all []localauthz.Covered) {
	covered := 0
	for _, c := range all {
		if c.Cases > 0 {
			covered++
		}
	}
	if len(all) > 0 {
		fmt.Fprintf(w, "coverage: %d of %s decided in some case (%.0f %%)\n", covered, plural(len(all), "policy"), 100*float64(covered)/float64(len(all)))
	}
	for _, c := range all {
		if c.Cases == 0 {
			fmt.Fprintf(w, "  none  %s:%d  %s\n", oneLine(c.File), c.Line, oneLine(c.ID))
		}
	}
}

// plural counts things.
func plural(n int, thing string) string {
	switch {
	case n == 1:
		return "1 " + thing
	case thing[len(thing)-1] == 'y':
		return fmt.Sprintf("%d %sies", n, thing[:len(thing)-1])
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
