//! Compilers and `make` in the mount, and `ffmpeg`.

use crate::bench::Bench;
use crate::support::tree::Times;

const PROJECT: &str = r##"
mkdir project; cd project; mkdir src include
for i in $(seq 12); do
    echo "int f$i(int x);" > include/f$i.h
    printf '#include "f%s.h"\n#include "all.h"\nint f%s(int x) { return x * %s + COMMON; }\n' $i $i $i > src/f$i.c
done
echo '#define COMMON 7' > include/all.h
{ for i in $(seq 12); do echo "#include \"f$i.h\""; done; echo '#include <stdio.h>'; echo 'int main(void) { int s = 0;'
  for i in $(seq 12); do echo "s += f$i($i);"; done; echo 'printf("%d\n", s); return 0; }'; } > src/main.c
cat > Makefile <<'MK'
CFLAGS = -O1 -g -Iinclude -MMD -MP -frandom-seed=1
OBJECTS = $(patsubst src/%.c,build/%.o,$(filter-out src/main.c,$(wildcard src/*.c)))
prog: build/main.o build/liball.a
	$(CC) -o $@ $^
build/liball.a: $(sort $(OBJECTS))
	rm -f $@; ar rcsD $@ $^
build/%.o: src/%.c | build
	$(CC) $(CFLAGS) -fdebug-prefix-map=$(CURDIR)=. -c -o $@ $<
build:
	mkdir -p build
clean:
	rm -rf build prog
-include $(wildcard build/*.d)
MK
"##;

#[test]
fn gcc_and_make() {
    let bench = Bench::new(Times::Free);
    bench.prepare(PROJECT);
    bench.run(
        r#"
        cp -r $IN/project .; cd project
        make -s -j2; ./prog
        make -q && echo up to date
        sleep 0.02; touch include/f3.h; refused make -q; make -s -j2; ./prog
        sleep 0.02; sed -i 's/7/8/' include/all.h; make -s; ./prog; make -q
        make -s clean; ls; make -s -j2; ./prog; strip prog; ./prog
        install -m 0755 -D prog ../inst/bin/prog; ../inst/bin/prog
        "#,
    );
    bench.finish("cd project; make -q && echo up to date; ./prog");
}

#[test]
fn cargo_build() {
    let bench = Bench::new(Times::Free).ignoring(&["crate/target"]);
    let home = std::env::var("HOME").unwrap_or_default();
    let cargo_home = std::env::var("CARGO_HOME").unwrap_or(format!("{home}/.cargo"));
    let rustup_home = std::env::var("RUSTUP_HOME").unwrap_or(format!("{home}/.rustup"));
    let bench = bench.env("CARGO_HOME", &cargo_home).env("RUSTUP_HOME", &rustup_home);
    let steps = r#"
        export -n CARGO_TARGET_DIR RUSTFLAGS 2>/dev/null || true; unset CARGO_TARGET_DIR RUSTFLAGS
    "#;
    bench.run(&format!(
        r#"{steps}
        mkdir -p crate/src; cd crate
        printf '[package]\nname = "small"\nversion = "0.1.0"\nedition = "2021"\n[workspace]\n' > Cargo.toml
        printf 'pub fn twice(x: u64) -> u64 {{ x * 2 }}\n' > src/lib.rs
        printf 'fn main() {{ println!("{{}}", small::twice(21)); }}\n' > src/main.rs
        cargo build -q --offline; ./target/debug/small
        cargo build --offline -v 2>&1 | grep -c Fresh
        sleep 0.02; sed -i 's/x \* 2/x * 3/' src/lib.rs; cargo run -q --offline
        "#
    ));
    bench.finish(&format!("{steps}\ncd crate; cargo build --offline -v 2>&1 | grep -c Fresh; ./target/debug/small"));
}

#[test]
fn ffmpeg_faststart() {
    let bench = Bench::new(Times::Free);
    bench.run(
        r#"
        make() { ffmpeg -nostdin -v error -f lavfi -i "nullsrc=s=640x360:r=25:d=6,geq=random(1)*255:128:128" -f lavfi -i sine=d=6 \
            -threads 1 -c:v mpeg4 -q:v 6 -c:a aac -b:a 96k -fflags +bitexact -flags:v +bitexact -flags:a +bitexact "$@"; }
        make -movflags +faststart film.mp4
        stat -c %s film.mp4
        ffmpeg -nostdin -v error -i film.mp4 -c copy -fflags +bitexact -movflags +faststart copied.mp4
        ffmpeg -nostdin -v error -i film.mp4 -c copy -fflags +bitexact film.avi
        ffmpeg -nostdin -v error -y -i copied.mp4 -c copy -t 2 -fflags +bitexact film.mov
        ffmpeg -nostdin -v error -y -i film.mp4 -c copy -t 2 -fflags +bitexact copied.mp4
        head -c 4096 film.mp4 | grep -c moov
        ffprobe -v error -show_entries format=duration,nb_streams -of csv film.mp4
        "#,
    );
    let size = std::fs::metadata(bench.mount().path("w/film.mp4")).unwrap().len();
    assert!(size > 6 << 20, "the film of {size} bytes has only one part");
    bench.finish("ffmpeg -nostdin -v error -i film.mp4 -f null -; ffprobe -v error -show_entries format=duration -of csv film.avi");
}
