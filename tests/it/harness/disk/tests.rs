//! The layer under shell commands: what comes back after a cut.

use std::os::unix::fs::MetadataExt as _;

use super::*;

struct Disk {
    dir: TempDir,
    layer: Layer,
}

impl Disk {
    /// A disk with the files `a` and `b`.
    fn new() -> Self {
        let dir = TempDir::new().expect("a directory");
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("logs")).expect("a directory");
        fs::write(root.join("a"), "aaaa").and_then(|()| fs::write(root.join("b"), "bbbb")).expect("a file");
        let layer = Layer::new(&root, &root.join("logs"));
        Self { dir, layer }
    }

    /// Runs a script above the layer.
    fn run(&self, script: &str) -> Finished {
        let mut shell = Command::new("sh");
        shell.args(["-e", "-c", script]).current_dir(self.dir.path().join("root"));
        Finished::run(self.layer.command(&mut shell), SOON)
    }

    fn inode(&self, name: &str) -> u64 {
        fs::metadata(self.dir.path().join("root").join(name)).expect("the file is there").ino()
    }

    /// Names and contents.
    fn files(&self) -> Vec<(String, String)> {
        let root = self.dir.path().join("root");
        let mut find = Command::new("find");
        let found = Finished::run(find.arg(&root).args(["-type", "f", "-printf", "%P\n"]), SOON).success();
        let mut files: Vec<_> = found
            .lines()
            .map(|name| {
                (name.to_owned(), String::from_utf8_lossy(&fs::read(root.join(name)).expect("a file")).into_owned())
            })
            .collect();
        files.sort();
        files
    }

    /// Runs a script, cuts the power, and demands these files.
    fn assert_left(script: &str, expected: &[(&str, &str)]) {
        let disk = Self::new();
        disk.run(script).success();
        disk.layer.power_cut(Model::Strict);
        assert_eq!(
            disk.files(),
            expected.iter().map(|(n, t)| ((*n).into(), (*t).into())).collect::<Vec<_>>(),
            "{script}"
        );
    }
}

#[test]
fn what_no_sync_covers_is_gone() {
    let before = [("a", "aaaa"), ("b", "bbbb")];
    Disk::assert_left("printf new >c; mkdir d; printf x >d/e", &before);
    Disk::assert_left("printf 1234567 >>a; printf 12 | dd of=b bs=1 seek=1 conv=notrunc", &before);
    Disk::assert_left("printf short >a; truncate -s 2 b; truncate -s 9 b", &before);
    Disk::assert_left("rm a; mv b c", &before);
    Disk::assert_left("mv b a", &before);
    Disk::assert_left("rm a; printf other >a; sync a; mv a c; printf more >a", &before);
}

#[test]
fn a_sync_of_a_file_covers_its_bytes_and_one_of_its_directory_its_name() {
    Disk::assert_left("printf new >c; sync c", &[("a", "aaaa"), ("b", "bbbb")]);
    Disk::assert_left("printf new >c; sync .", &[("a", "aaaa"), ("b", "bbbb"), ("c", "")]);
    Disk::assert_left("printf new >c; sync c .; printf more >>c", &[("a", "aaaa"), ("b", "bbbb"), ("c", "new")]);
    Disk::assert_left("printf 12 >>a; sync -d a; printf 34 >>a", &[("a", "aaaa12"), ("b", "bbbb")]);
    Disk::assert_left("sync a b; printf 1 >>a; printf 2 >b", &[("a", "aaaa"), ("b", "bbbb")]);
    Disk::assert_left("mv b a; sync .", &[("a", "bbbb")]);
    Disk::assert_left("mkdir d; printf x >d/e; sync d/e d", &[("a", "aaaa"), ("b", "bbbb")]);
    Disk::assert_left("mkdir d; printf x >d/e; sync d/e d .", &[("a", "aaaa"), ("b", "bbbb"), ("d/e", "x")]);
    Disk::assert_left("rm a; sync .; printf z >a", &[("b", "bbbb")]);
    // It syncs what it has done.
    Disk::assert_left("fallocate -l 6 a; printf 12 >>a", &[("a", "aaaa\0\0"), ("b", "bbbb")]);
    Disk::assert_left("printf kept >logs/l", &[("a", "aaaa"), ("b", "bbbb"), ("logs/l", "kept")]);
}

#[test]
fn files_keep_their_inodes_and_a_second_cut_takes_nothing_more() {
    let disk = Disk::new();
    let inodes = (disk.inode("a"), disk.inode("b"));
    disk.run("printf 1 >>a; sync a; printf 2 >>a; mv b c; rm c").success();
    disk.layer.power_cut(Model::Strict);
    assert_eq!((disk.inode("a"), disk.inode("b")), inodes);
    disk.layer.power_cut(Model::Random(1));
    assert_eq!(disk.files(), [("a".into(), "aaaa1".into()), ("b".into(), "bbbb".to_owned())]);
}

#[test]
fn a_process_that_is_killed_and_one_after_it_share_a_cut() {
    let disk = Disk::new();
    disk.run("printf 1 >>a; sync a; printf 2 >>a; kill -9 $$ || true");
    let log = fs::read(disk.layer.state("log")).expect("a log");
    // What a kill in the middle of a record leaves.
    fs::write(disk.layer.state("log"), [&log[..], &log[..20]].concat()).expect("a file");
    disk.run("printf 3 >>a; sync a; printf 4 >>a").success();
    disk.layer.power_cut(Model::Strict);
    assert_eq!(disk.files()[0].1, "aaaa123");
}

#[test]
fn luck_leaves_any_pages_and_lengths_and_the_same_for_the_same_seed() {
    let left = |seed| {
        let disk = Disk::new();
        disk.run("for i in 1 2 3; do head -c 20000 /dev/zero | tr '\\0' $i | dd of=a bs=1000 conv=notrunc; done; >c")
            .success();
        disk.layer.power_cut(Model::Random(seed));
        disk.files()
    };
    let all: Vec<_> = (0..24).map(left).collect();
    assert_eq!(left(7), all[7]);
    let of_a: Vec<_> = all.iter().map(|files| files[0].1.as_str()).collect();
    assert!(of_a.contains(&"aaaa"), "nothing reached the disk at times");
    assert!(of_a.contains(&"3".repeat(20_000).as_str()), "everything did at times");
    assert!(of_a.iter().any(|text| text.contains('1') && text.contains('3')), "pages of different ages");
    assert!(of_a.iter().any(|text| text.contains('\0')), "a hole");
    assert!(of_a.iter().any(|text| !matches!(text.len(), 4 | 20_000)), "a length in between");
    assert!(all.iter().any(|files| files.len() == 3) && all.iter().any(|files| files.len() == 2), "a name or none");
}

#[test]
fn a_failed_sync_loses_what_it_should_have_covered_unless_that_is_written_again() {
    let disk = Disk::new();
    disk.layer.fail_sync("root/a", 2);
    disk.run("sync b; printf 1 >>a; sync a").success();
    assert!(!disk.layer.has_failed_sync());
    let failed = disk.run("printf 23 >>a; sync a").code(1);
    assert!(failed.stderr.contains("Input/output error"), "{failed:?}");
    assert!(disk.layer.has_failed_sync());
    disk.run("sync a; printf 4 >>a; sync a; printf 3 | dd of=a bs=1 seek=6 conv=notrunc; sync a").success();
    disk.layer.power_cut(Model::Strict);
    assert_eq!(disk.files()[0].1, "aaaa1\u{0}34");
}

#[test]
fn writes_fail_while_they_are_told_to() {
    let disk = Disk::new();
    for (error, text) in
        [(Errno::EIO, "Input/output error"), (Errno::ENOSPC, "No space left"), (Errno::EROFS, "Read-only file system")]
    {
        disk.layer.fail_writes("root/a", error);
        for change in ["printf 1 >a", "printf 1 >>a", "rm a", "mv a c", "mv b a", "truncate -s 1 a", "mkdir a2"] {
            let failed = disk.run(change);
            assert!(failed.stderr.contains(text), "{change}: {failed:?}");
        }
        disk.run("cat a; printf b >>b; printf b >c; rm c").success();
    }
    disk.layer.heal();
    disk.run("printf 1 >>a; sync a").success();
    disk.layer.power_cut(Model::Strict);
    assert_eq!(disk.files(), [("a".into(), "aaaa1".into()), ("b".into(), "bbbb".to_owned())]);
}

#[test]
fn a_slow_sync_takes_its_time_and_covers_what_it_should() {
    let disk = Disk::new();
    disk.layer.slow_syncs("/a", Duration::from_millis(300)..Duration::from_millis(301));
    let fast = disk.run("sync b").took;
    let slow = disk.run("printf new > a; sync a; sync .").took;
    assert!(slow >= Duration::from_millis(300), "{slow:?}, where another file takes {fast:?}");
    disk.layer.power_cut(Model::Strict);
    assert_eq!(disk.files(), [("a".to_owned(), "new".to_owned()), ("b".to_owned(), "bbbb".to_owned())]);
}
