use proptest::prelude::*;

use super::*;

fn read_all(content: &Content) -> Vec<u8> {
    let mut bytes = vec![0xee; usize::try_from(content.len()).unwrap()];
    assert_eq!(content.read_at(0, &mut bytes), bytes.len());
    bytes
}

#[test]
fn a_hole_reads_as_zeros_and_costs_nothing() {
    let mut content = Content::default();
    content.set_len(1 << 40);
    assert_eq!(content.private_bytes(), 0);
    let mut bytes = [1; 100];
    assert_eq!(content.read_at(1 << 39, &mut bytes), 100);
    assert_eq!(bytes, [0; 100]);
}

#[test]
fn writing_zeros_into_a_hole_leaves_it_a_hole() {
    let mut content = Content::default();
    content.write_at(0, &[0; 4 * CHUNK]);
    assert_eq!((content.len(), content.private_bytes()), (4 * CHUNK_U64, 0));
}

#[test]
fn writing_zeros_over_bytes_erases_them() {
    let mut content = Content::from_extent(Extent::owned(vec![7; 2 * CHUNK]));
    content.write_at(0, &[0; CHUNK]);
    let bytes = read_all(&content);
    assert!(bytes[..CHUNK].iter().all(|byte| *byte == 0) && bytes[CHUNK..].iter().all(|byte| *byte == 7));
}

#[test]
fn truncating_and_extending_again_shows_zeros_and_not_the_old_bytes() {
    let mut content = Content::from_extent(Extent::owned(vec![7; 3 * CHUNK]));
    content.write_at(CHUNK_U64, &[8; CHUNK]);
    content.set_len(CHUNK_U64 + 10);
    content.set_len(3 * CHUNK_U64);
    let mut expected = vec![7; CHUNK];
    expected.extend([8; 10]);
    expected.resize(3 * CHUNK, 0);
    assert_eq!(read_all(&content), expected);
}

#[test]
fn a_clone_of_frozen_content_shares_every_byte_and_diverges_by_chunk() {
    let mut origin = Content::default();
    origin.write_at(0, &vec![1; 100 * CHUNK]);
    origin.freeze();
    let mut clone = origin.clone();
    assert_eq!(clone.private_bytes(), 0);
    clone.write_at(5 * CHUNK_U64 + 1, &[2]);
    assert_eq!(clone.private_bytes(), CHUNK_COST);
    origin.write_at(6 * CHUNK_U64, &[3]);
    let mut byte = [0];
    origin.read_at(5 * CHUNK_U64 + 1, &mut byte);
    assert_eq!(byte, [1]);
    clone.read_at(6 * CHUNK_U64, &mut byte);
    assert_eq!(byte, [1]);
}

#[test]
fn truncating_a_frozen_file_hides_what_lies_below_even_after_the_next_freeze() {
    let mut content = Content::default();
    content.write_at(0, &vec![1; 3 * CHUNK]);
    content.freeze();
    content.set_len(10);
    content.set_len(2 * CHUNK_U64);
    content.write_at(2 * CHUNK_U64, &[5; 3]);
    content.freeze();
    let mut expected = vec![1; 10];
    expected.resize(2 * CHUNK, 0);
    expected.extend([5; 3]);
    assert_eq!(read_all(&content), expected);
    assert_eq!(content.occupied(), [0, 2]);
}

#[derive(Clone, Debug)]
enum Step {
    Write { offset: u64, len: usize, byte: u8 },
    SetLen(u64),
    Freeze,
}

fn step() -> impl Strategy<Value = Step> {
    let place = prop_oneof![0..40_000_u64, (0..5_u64).prop_map(|chunk| chunk * CHUNK_U64)];
    let len = prop_oneof![0..20_000_usize, (0..3_usize).prop_map(|chunks| chunks * CHUNK)];
    prop_oneof![
        4 => (place, len, 0..3_u8).prop_map(|(offset, len, byte)| Step::Write { offset, len, byte }),
        2 => (0..60_000_u64).prop_map(Step::SetLen),
        1 => Just(Step::Freeze),
    ]
}

proptest! {
    #[test]
    fn content_behaves_like_a_vector_of_bytes(base in 0..30_000_usize, steps in prop::collection::vec(step(), 1..20)) {
        let mut model = vec![9_u8; base];
        let mut content = Content::from_extent(Extent::owned(model.clone()));
        for step in steps {
            match step {
                Step::Write { offset, len, byte } => {
                    content.write_at(offset, &vec![byte; len]);
                    let offset = usize::try_from(offset).unwrap();
                    if len > 0 {
                        model.resize(model.len().max(offset + len), 0);
                        model[offset..offset + len].fill(byte);
                    }
                }
                Step::SetLen(len) => {
                    content.set_len(len);
                    model.resize(usize::try_from(len).unwrap(), 0);
                }
                Step::Freeze => content.freeze(),
            }
            prop_assert!(read_all(&content) == model);
        }
        let occupied = content.occupied();
        for (index, chunk) in model.chunks(CHUNK).enumerate() {
            if chunk.iter().any(|byte| *byte != 0) {
                prop_assert!(occupied.contains(&(index as u64)), "chunk {} is not reported as occupied", index);
            }
        }
    }
}
